//! The smallest possible agent: makes sure that a guard runs, has it start a program, and moves the deadline on until it is killed.
//!
//! `agent NODE-DIR GUARD-PROGRAM LEASE-MS PROGRAM [ARGUMENT…]`; a lease of 0 starts the program without a deadline.

use mainstay_guard::ensure_guard;
use mainstay_model::layout::NodeLayout;
use mainstay_model::{Span, Term};
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::{ServerProcess as _, StartCommand};
use std::path::Path;
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, guard, lease, program, rest @ ..] = arguments.as_slice() else {
        return Err("usage: agent NODE-DIR GUARD-PROGRAM LEASE-MS PROGRAM [ARGUMENT…]".into());
    };
    let (layout, lease) = (NodeLayout::new(dir), Span(lease.parse()?));
    let guard = ensure_guard(&layout, Path::new(guard), &[]).await?;
    let command = StartCommand {
        program: program.into(),
        arguments: rest.to_vec(),
        environment: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        user: None,
        data_dir: layout.data(),
        log_file: layout.server_log(),
    };
    let primary = (lease > Span(0)).then(|| (Term(1), boot_now() + lease));
    println!("{}", guard.start(command, primary).await?);
    loop {
        tokio::time::sleep(Duration::from_millis(lease.0.max(600) / 6)).await;
        if lease > Span(0) {
            guard.extend(Term(1), boot_now() + lease).await?;
        }
    }
}
