//! `conformance-eval --kinds`: prints the resource kinds that are built, one a line.
//! `conformance-eval CASE_DIR`: prints, as JSON, what this implementation says to one case of kind `function`.
//!
//! Exit status: 0 printed, 77 the function is not built yet, 2 the case cannot be evaluated (the reason is on stderr).

use ikada_model::{Kind, decode};
use ikada_tests::{
    corpus::Case,
    functions::{EvalError, evaluate},
};
use std::{io::Write, path::Path, process::ExitCode};

const UNSUPPORTED: u8 = 77;
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [dir] = args.as_slice() else {
        eprintln!("usage: conformance-eval CASE_DIR | --kinds");
        return ExitCode::from(BAD_INPUT);
    };
    if dir == "--kinds" {
        for kind in Kind::all().filter(|k| decode::is_implemented(*k)) {
            println!("{kind}");
        }
        return ExitCode::SUCCESS;
    }
    let result = Case::load(Path::new(dir)).map_err(EvalError::Failed).and_then(|case| evaluate(&case));
    match result {
        Ok(value) => match writeln!(std::io::stdout().lock(), "{value:#}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("conformance-eval: cannot write: {e}");
                ExitCode::from(BAD_INPUT)
            }
        },
        Err(EvalError::Unsupported(why)) => {
            eprintln!("conformance-eval: {why}");
            ExitCode::from(UNSUPPORTED)
        }
        Err(EvalError::Failed(e)) => {
            eprintln!("conformance-eval: {e:#}");
            ExitCode::from(BAD_INPUT)
        }
    }
}
