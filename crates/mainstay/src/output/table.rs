//! Tables without lines: columns padded by blanks, so that they can be read by people and cut by programs.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

/// Lays rows out under a head, within `width` columns; longer cells are wrapped.
pub(crate) fn render(head: &[&str], rows: &[Vec<String>], width: u16) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table.set_header(head.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    let columns = head.len();
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if place + 1 == columns { 0 } else { 2 }));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A text in lines of at most this many letters, broken between words.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for part in text.lines() {
        let mut line = String::new();
        for word in part.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

/// A number of bytes for people, at most seven characters.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count;
    let mut rest = 0;
    let mut unit = 0;
    while value >= 1024 && unit + 1 < UNITS.len() {
        rest = value % 1024;
        value /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("TB");
    if unit > 0 && value < 10 { format!("{value}.{} {name}", rest * 10 / 1024) } else { format!("{value} {name}") }
}

/// A length of time for people: the largest unit that fits.
pub(crate) fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::{ago, bytes, render, wrap};

    #[test]
    fn long_texts_are_broken_between_words() {
        assert_eq!(wrap("one two three\nfour", 8), ["one two", "three", "four"]);
        assert_eq!(wrap("extraordinarily", 4), ["extraordinarily"]);
    }

    #[test]
    fn columns_are_aligned_and_lines_end_clean() {
        let rows = [vec!["db1".to_owned(), "primary".to_owned()], vec!["db10".to_owned(), "-".to_owned()]];
        assert_eq!(render(&["NODE", "ROLE"], &rows, 80), "NODE  ROLE\ndb1   primary\ndb10  -\n");
    }

    #[test]
    fn quantities_for_people() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(16 << 20)], ["0 B", "1023 B", "1.5 kB", "16 MB"]);
        assert_eq!([ago(0), ago(119), ago(120), ago(7200), ago(200_000)], ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
