//! A report as one page that needs nothing else: it can be mailed, stored outside the cluster, and printed.

use crate::report::{Block, Mark, Report, Section};
use std::fmt::Write as _;

/// A text inside HTML.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
:root{--ink:#1b2733;--soft:#5a6b7b;--line:#d5dde5;--back:#fff;--panel:#f4f7fa;--main:#0b5d8f;--warm:#b35c00}
*{box-sizing:border-box}
body{margin:0;font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,sans-serif;color:var(--ink);background:var(--back)}
main{max-width:1180px;margin:0 auto;padding:24px 28px 64px}
h1{font-size:1.7rem;margin:.2em 0}h2{font-size:1.25rem;margin:2.2em 0 .6em;padding-top:.5em;border-top:2px solid var(--main)}
h3{font-size:1rem;margin:1.5em 0 .4em}
.made{color:var(--soft)}
nav{columns:3;font-size:.92rem;margin:1em 0}nav a{display:block;color:var(--main);text-decoration:none;padding:2px 0}nav a:hover{text-decoration:underline}
.short{background:var(--panel);border-left:4px solid var(--main);padding:.6em 1.1em;margin:1em 0}
ul{padding-left:1.2em;margin:.5em 0}li{margin:.3em 0}
table{border-collapse:collapse;width:100%;font-size:.87rem;line-height:1.4}
th{text-align:left;background:var(--panel);border-bottom:2px solid var(--line);padding:6px 8px;vertical-align:bottom}
td{border-bottom:1px solid var(--line);padding:6px 8px;vertical-align:top;overflow-wrap:break-word}
td.from{white-space:nowrap;overflow-wrap:normal}
.mark{font-size:.75rem;border-radius:9px;padding:1px 8px;background:#e8eef3;color:var(--soft);white-space:nowrap}
.mark.measured{background:#dcf1e2;color:#17663a}.mark.declared{background:#fdeedd;color:#8a4700}
pre{background:#17212b;color:#e6edf3;padding:12px 14px;border-radius:6px;font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.picture{width:100%;height:auto;display:block;margin:1em auto;font:13px system-ui,sans-serif}
.picture text{text-anchor:middle;fill:var(--ink)}.picture .strong{font-weight:600;font-size:15px}.picture .small{font-size:11.5px;fill:var(--soft)}.picture .left{text-anchor:start}
.picture .zone{fill:#f4f7fa;stroke:#b9c6d2;stroke-dasharray:5 4}.picture .data{fill:#e3f0f9;stroke:#0b5d8f;stroke-width:1.5}
.picture .witness{fill:#fff;stroke:#5a6b7b;stroke-dasharray:3 3}.picture .clients{fill:#fff;stroke:#b35c00}.picture .way{fill:none;stroke:#b35c00}.picture .tip{fill:#b35c00}
@media screen and (max-width:760px){
main{padding:14px 14px 48px}nav{columns:1}
table,tbody,tr,td{display:block;width:100%}thead{display:none}
tr{border:1px solid var(--line);border-radius:6px;margin:0 0 10px;padding:4px 0}
td{border:0;padding:3px 10px}td::before{content:attr(data-name);display:block;font-size:.72rem;color:var(--soft)}td.from{white-space:normal}
}
@media print{
@page{margin:15mm}
body{font-size:9.5pt}main{max-width:none;padding:0}nav{columns:2}a{color:inherit}
h2,h3{break-after:avoid}tr,pre,.short,svg{break-inside:avoid}thead{display:table-header-group}
table{font-size:7.8pt}pre{background:#fff;color:#000;border:1px solid #999;font-size:7.8pt}
th,.short,.mark{background:#fff!important}.mark{border:1px solid #bbb;font-size:6.5pt;padding:0 4px}
.page{break-before:page}
}
";

/// The whole page.
#[must_use]
pub fn page(report: &Report) -> String {
    let (kind, cluster) = (report.kind, escape(&report.cluster));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{kind}: {cluster}</title><style>{STYLE}</style></head><body><main>\n<h1>{kind} of the cluster {cluster}</h1>\n\
         <p class=\"made\">Made by Mainstay on {}. Each statement says where it comes from: {} seen on a machine, {} follows from what is known, {} stands in the file and is not proved.</p>\n",
        report.date,
        mark_named("measured"),
        mark_named("derived"),
        mark_named("declared")
    );
    out.push_str("<div class=\"short\"><ul>");
    for line in &report.summary {
        let _ = write!(out, "<li>{}</li>", escape(&line.text));
    }
    out.push_str("</ul></div>\n<nav>");
    for section in &report.sections {
        let _ = write!(out, "<a href=\"#{}\">{}. {}</a>", section.key, section.number, escape(section.title));
    }
    out.push_str("</nav>\n");
    for each in &report.sections {
        section(&mut out, each, report);
    }
    out.push_str("</main></body></html>\n");
    out
}

fn mark_named(class: &str) -> String {
    format!("<span class=\"mark {class}\">{class}</span>")
}

fn mark(mark: &Mark) -> String {
    let class = match mark {
        Mark::Measured(_) => "measured",
        Mark::Derived => "derived",
        Mark::Declared | Mark::Default => "declared",
    };
    format!("<span class=\"mark {class}\">{}</span>", escape(&mark.words()))
}

fn section(out: &mut String, section: &Section, report: &Report) {
    let class = if report.kind == "Runbook" { " class=\"page\"" } else { "" };
    let _ =
        writeln!(out, "<section{class} id=\"{}\"><h2>{}. {}</h2>", section.key, section.number, escape(section.title));
    for block in &section.blocks {
        match block {
            Block::Say(lines) => {
                out.push_str("<ul>");
                for line in lines {
                    let _ = write!(out, "<li>{} {}</li>", escape(&line.text), mark(&line.mark));
                }
                out.push_str("</ul>\n");
            }
            Block::Table { caption, head, rows } => {
                let _ = write!(out, "<h3>{}</h3><table><thead><tr>", escape(caption));
                for name in head {
                    let _ = write!(out, "<th>{}</th>", escape(name));
                }
                out.push_str("<th>From</th></tr></thead><tbody>");
                for row in rows {
                    out.push_str("<tr>");
                    for (cell, name) in row.cells.iter().zip(head) {
                        let _ = write!(out, "<td data-name=\"{}\">{}</td>", escape(name), escape(cell));
                    }
                    let _ = write!(out, "<td class=\"from\" data-name=\"From\">{}</td></tr>", mark(&row.mark));
                }
                out.push_str("</tbody></table>\n");
            }
            Block::Code { caption, text } => {
                let _ = writeln!(out, "<h3>{}</h3><pre>{}</pre>", escape(caption), escape(text));
            }
            Block::Picture => out.push_str(&report.picture),
        }
    }
    out.push_str("</section>\n");
}
