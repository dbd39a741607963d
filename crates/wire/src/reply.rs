//! Messages that a proxy makes itself. Absent: those that it passes on.

/// Appends one message: its tag, its length, its body.
pub fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([tag, 0, 0, 0, 0]);
    body(out);
    let length = u32::try_from(out.len() - start - 1).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start + 1..start + 5) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends a text and its end; a zero byte inside is left out.
pub fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.push(0);
}

/// `ReadyForQuery`.
pub fn ready(out: &mut Vec<u8>, status: u8) {
    out.extend([b'Z', 0, 0, 0, 5, status]);
}

/// `CommandComplete`.
pub fn complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| text(out, tag));
}

/// `ParameterStatus`.
pub fn parameter(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

/// A simple query.
pub fn query(out: &mut Vec<u8>, sql: &str) {
    message(out, b'Q', |out| text(out, sql));
}

/// A session's first packet.
pub fn startup(out: &mut Vec<u8>, parameters: &[(&str, &str)]) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(196_608_u32.to_be_bytes());
    for (name, value) in parameters {
        text(out, name);
        text(out, value);
    }
    out.push(0);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// A table for a person: names, then rows of texts. Ends with `CommandComplete`.
pub fn table(out: &mut Vec<u8>, names: &[&str], rows: &[Vec<String>]) {
    let count = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes();
    message(out, b'T', |out| {
        out.extend(count(names.len()));
        for name in names {
            text(out, name);
            // No table, no column; type text, of any length, in text format.
            out.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        }
    });
    for row in rows {
        message(out, b'D', |out| {
            out.extend(count(row.len()));
            for value in row {
                out.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
                out.extend(value.as_bytes());
            }
        });
    }
    complete(out, "SHOW");
}

/// An error or a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// `ERROR`, `FATAL` or `NOTICE`.
    pub severity: &'static str,
    /// SQLSTATE.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// What that means for the client's work.
    pub detail: String,
    /// What to do next.
    pub hint: String,
}

impl Reply {
    /// An error of these words.
    #[must_use]
    pub fn error(severity: &'static str, code: &'static str, message: &str, detail: &str, hint: &str) -> Self {
        Self { severity, code, message: message.to_owned(), detail: detail.to_owned(), hint: hint.to_owned() }
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let tag = if self.severity == "NOTICE" { b'N' } else { b'E' };
        let fields = [
            (b'S', self.severity),
            (b'V', self.severity),
            (b'C', self.code),
            (b'M', &self.message),
            (b'D', &self.detail),
            (b'H', &self.hint),
        ];
        message(out, tag, |out| {
            for (kind, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
                out.push(*kind);
                text(out, value);
            }
            out.push(0);
        });
    }
}
