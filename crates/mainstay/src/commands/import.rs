//! `mainstay import patroni`: makes a cluster's file from a Patroni configuration, and says what became of each line of it. Asks no host, starts
//! nothing, replaces no file.

use crate::cli::{Global, Import, ImportFrom, ImportPatroni};
use crate::failure::{Failure, Outcome};
use crate::local::engine::owned_parameters;
use crate::output::file::{is_there, write_new_spec};
use crate::output::table::wrap;
use crate::output::{self, Colour, paint, paint_error};
use crate::target::absolute;
use mainstay_model::config::{parse, render};
use mainstay_plan::patroni::{Entry, Fate, Imported, Source, import};
use serde_json::json;
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// When a file can not be read, is not Patroni's, or the result is there already (not now).
pub(crate) fn run(options: &Import, global: Global) -> Outcome {
    match &options.from {
        ImportFrom::Patroni(options) => patroni(options, global),
    }
}

fn patroni(options: &ImportPatroni, global: Global) -> Outcome {
    let output = options.output.as_deref().map(absolute).transpose()?;
    if let Some(path) = output.as_deref().filter(|path| path.exists()) {
        return Err(is_there(path));
    }
    let texts = options.files.iter().map(|path| read(path)).collect::<Outcome<Vec<(String, String)>>>()?;
    let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let made =
        import(&sources, owned_parameters()).map_err(|refused| Failure::usage(refused.text).hint(refused.hint))?;
    let text = format!(
        "# Made by `mainstay import patroni` from {}.\n{}",
        texts.iter().map(|(name, _)| name.replace(char::is_control, "?")).collect::<Vec<_>>().join(", "),
        render(&made.spec)
    );
    // What is written must be what is read.
    parse(&text, owned_parameters())
        .map_err(|error| Failure::failed(format!("the file would not be read: {error}")))?;
    if let Some(path) = &output {
        write_new_spec(path, &text)?;
    }
    report(&made, &text, output.as_deref(), global);
    Ok(())
}

/// A file's name as it was given, and what it holds.
fn read(path: &Path) -> Outcome<(String, String)> {
    let shown = path.display().to_string();
    let wrong = |why: String| Failure::usage(format!("{shown} can not be read: {why}"));
    if path.is_dir() {
        return Err(wrong("it is a directory".to_owned()).hint("name the files in it, one for each node"));
    }
    let text = crate::given::text(path).map_err(|error| wrong(error.to_string()))?;
    Ok((shown, text))
}

fn report(made: &Imported, text: &str, output: Option<&Path>, global: Global) {
    let written = output.map(|path| path.display().to_string());
    if global.json {
        output::object(&json!({
            "cluster": made.spec.cluster.name, "nodes": made.spec.nodes.len(), "written": written, "file": text,
            "entries": made.entries, "notes": made.notes,
        }));
        return;
    }
    let to_stdout = written.is_some();
    let say = |line: &str| if to_stdout { output::line(line) } else { output::errline(line) };
    let head = |text: &str| say(&if to_stdout { paint(Colour::Cyan, text) } else { paint_error(Colour::Cyan, text) });
    if !to_stdout {
        text.lines().for_each(output::line);
    }
    for (fate, title) in [(Fate::Carried, "Carried over"), (Fate::Changed, "Changed"), (Fate::Left, "Left behind")] {
        let rows = rows(&made.entries, fate);
        head(&format!("{title} ({})", made.entries.iter().filter(|entry| entry.fate == fate).count()));
        for (place, row) in rows.iter().enumerate() {
            say(&format!("  {}  ({})", row.what, row.places.join(", ")));
            // What has the same reason as the one below is a list; the reason stands at its end.
            if rows.get(place + 1).is_none_or(|below| below.why != row.why) && !row.why.is_empty() {
                let width = usize::from(output::width()).clamp(40, 120) - 6;
                wrap(row.why, width).iter().for_each(|line| say(&format!("      {line}")));
            }
        }
        say("");
    }
    for note in &made.notes {
        let width = usize::from(output::width()).clamp(40, 120) - 2;
        let lines = wrap(note, width);
        lines.iter().enumerate().for_each(|(at, line)| say(&format!("{} {line}", if at == 0 { "!" } else { " " })));
    }
    if let Some(written) = written {
        say(&format!("Written: {written} ({} nodes)", made.spec.nodes.len()));
        say(&format!("Next, what it means: mainstay plan --offline --config {written}"));
    }
}

/// One line of the report: the same key of several files stands in it once.
struct Row<'a> {
    what: String,
    places: Vec<String>,
    why: &'a str,
}

fn rows(entries: &[Entry], fate: Fate) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.fate == fate) {
        let key = &entry.key;
        let what = match (&entry.to, &entry.value) {
            (Some(to), Some(value)) => format!("{key} → {to} = {value}"),
            (Some(becomes), None) | (None, Some(becomes)) => format!("{key} → {becomes}"),
            (None, None) => key.clone(),
        };
        let place = format!("{}:{}", entry.file, entry.line);
        match rows.iter_mut().find(|row| row.what == what && row.why == entry.why) {
            Some(row) => row.places.push(place),
            None => rows.push(Row { what, places: vec![place], why: &entry.why }),
        }
    }
    rows
}
