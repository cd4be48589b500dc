//! The checkers find what is wrong with the histories in `samples/`, and nothing in the good ones.

use ikada_jepsen::{
    check::{Verdict, linear::Bounds},
    edn::{self, Edn},
    history,
    judge::{Checker, judge_all},
};
use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn verdicts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let expected = edn::parse_all(&read("expected.edn")).unwrap();
    let [Edn::Map(expected)] = expected.as_slice() else { panic!("expected.edn is one map") };
    let mut seen = BTreeSet::from(["expected.edn".to_owned()]);
    for (name, wanted) in expected {
        let name = name.as_name().unwrap();
        seen.insert(name.to_owned());
        let checker = Checker::by_name(wanted.get("checker").and_then(Edn::as_name).unwrap()).unwrap();
        let events = history::parse(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = judge_all(&events, &[checker], Bounds::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let verdict = &found[0].verdict;
        assert_eq!(verdict.name(), wanted.get("valid?").unwrap().to_string(), "{name}: {verdict}");
        let text = match verdict {
            Verdict::Valid => String::new(),
            Verdict::Invalid(findings) => findings[0].clone(),
            Verdict::Unknown(why) => why.clone(),
        };
        let part = wanted.get("finding").and_then(Edn::as_name).unwrap_or("");
        assert!(text.contains(part), "{name}: {text}");
    }
    let files: BTreeSet<String> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, seen, "each sample has its line in expected.edn");
}
