//! The guard as a program of its own: `mainstay-guard --socket PATH --log PATH`.

use mainstay_guard::{GuardOptions, intercept, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    intercept();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "guard").collect();
    let ["--socket", socket, "--log", log] = words.as_slice() else {
        eprintln!("usage: mainstay-guard --socket PATH --log PATH");
        return ExitCode::from(2);
    };
    match run(&GuardOptions { socket: socket.into(), log: log.into() }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mainstay-guard: {error}");
            ExitCode::FAILURE
        }
    }
}
