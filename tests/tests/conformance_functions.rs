//! Every case of the complete suites of kind `function`, compared as the corpus's own runner compares.

use ikada_tests::{
    compare::difference,
    corpus,
    functions::{EvalError, evaluate},
};

/// Suites that are complete: a case in them that fails or is not supported fails the test.
fn is_complete(suite: &str) -> bool {
    suite.starts_with("rules-") || suite.starts_with("match-") || ["xds-admin", "xds-diff", "xds-direct-access", "xds-dns"].contains(&suite)
}

#[test]
fn complete_suites() {
    let Some(dir) = corpus::dir_for_test("complete_suites") else { return };
    let mut failures = Vec::new();
    let (mut suites, mut cases) = (0, 0);
    for suite in corpus::suites(&dir).unwrap().iter().filter(|s| is_complete(s)) {
        let all = corpus::suite(&dir, suite).unwrap();
        let mut passed = 0;
        for case in &all {
            let problem = match evaluate(case) {
                Ok(got) => difference(&case.expected().unwrap(), &got),
                Err(EvalError::Unsupported(why)) => Some(why),
                Err(EvalError::Failed(e)) => Some(format!("{e:#}")),
            };
            match problem {
                None => passed += 1,
                Some(p) => failures.push(format!("{}: {p}", case.field("id"))),
            }
        }
        println!("{suite:28} {passed:4} of {:4}", all.len());
        suites += 1;
        cases += all.len();
    }
    println!("{suites} suites, {cases} cases, {} failed", failures.len());
    assert!(suites >= 16, "the corpus has only {suites} of the 16 suites");
    assert!(failures.is_empty(), "{} of {cases} cases failed:\n{}", failures.len(), failures.join("\n"));
}
