//! What a text of SQL leaves behind in its session, as far as the text tells: settings, and state that ties the client to one server.
//!
//! No parser: words outside of strings and comments, by statement. Where in doubt it says *pin*, which costs sharing and never
//! correctness. What a function does inside is not seen (no pooler can).

/// Session state that only one server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pin {
    /// A temporary table, view or sequence.
    Temporary,
    /// A cursor that outlives its transaction.
    HeldCursor,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// `set_config` for the session.
    SetConfig,
    /// A setting that can not be followed.
    Setting,
    /// `LISTEN`.
    Listen,
    /// `PREPARE` in SQL.
    Prepared,
    /// `LOAD`.
    Load,
    /// The text was too long to be looked at whole.
    LongText,
}

impl Pin {
    /// In words, for people.
    #[must_use]
    pub fn why(self) -> &'static str {
        match self {
            Pin::Temporary => "temporary table",
            Pin::HeldCursor => "cursor with hold",
            Pin::AdvisoryLock => "session-level advisory lock",
            Pin::SetConfig => "set_config for the session",
            Pin::Setting => "a setting that can not be followed",
            Pin::Listen => "LISTEN",
            Pin::Prepared => "PREPARE in SQL",
            Pin::Load => "LOAD",
            Pin::LongText => "a text too long to be looked at",
        }
    }
}

/// A change of the session's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This setting, by this statement.
    Set {
        /// Its name in small letters.
        name: String,
        /// The statement that sets it.
        sql: String,
    },
    /// This setting is what it was.
    Reset(String),
    /// All are.
    ResetAll,
}

/// What a text does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Ties the session to its server.
    pub pin: Option<Pin>,
    /// Settings, in order.
    pub changes: Vec<Change>,
    /// May commit.
    pub commits: bool,
    /// Goes back to a savepoint, or ends one transaction and begins the next.
    pub back_to_savepoint: bool,
    /// The one statement is `DEALLOCATE` of this name.
    pub deallocate: Option<String>,
    /// Statements in it.
    pub statements: usize,
    /// The one statement ends a transaction.
    pub ends: bool,
}

/// The longest text that is looked at.
pub const TEXT_BYTES_MAX: usize = 256 * 1024;
const WORDS_KEPT: usize = 4;

/// Looks at a text.
#[must_use]
pub fn traits(sql: &[u8]) -> Traits {
    let mut traits = Traits::default();
    if sql.len() > TEXT_BYTES_MAX {
        traits.pin = Some(Pin::LongText);
        return traits;
    }
    let mut words = Words { sql, at: 0 };
    let mut statement = Statement::default();
    loop {
        match words.next() {
            Token::Word(from, to) => statement.word(&sql[from..to], from),
            Token::Other(from) => statement.other(from),
            Token::End(at) => {
                statement.finish(sql, at, &mut traits);
                statement = Statement::default();
            }
            Token::Eof => {
                statement.finish(sql, sql.len(), &mut traits);
                break;
            }
        }
    }
    if traits.statements != 1 {
        (traits.deallocate, traits.ends) = (None, false);
    }
    traits
}

enum Token {
    Word(usize, usize),
    Other(usize),
    End(usize),
    Eof,
}

struct Words<'a> {
    sql: &'a [u8],
    at: usize,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

impl Words<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Token {
        while let Some(&byte) = self.sql.get(self.at) {
            let from = self.at;
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'-' if self.peek(1) == b'-' => self.line(),
                b'/' if self.peek(1) == b'*' => self.comment(),
                b'\'' => {
                    self.quoted(b'\'', false);
                    return Token::Other(from);
                }
                b'"' => {
                    self.quoted(b'"', false);
                    return Token::Word(from + 1, self.at.saturating_sub(1).max(from + 1));
                }
                b'e' | b'E' if self.peek(1) == b'\'' => {
                    self.at += 1;
                    self.quoted(b'\'', true);
                    return Token::Other(from);
                }
                b'$' if self.dollar() => return Token::Other(from),
                b';' => {
                    self.at += 1;
                    return Token::End(from);
                }
                byte if is_word(byte) => {
                    while is_word(self.peek(0)) {
                        self.at += 1;
                    }
                    return Token::Word(from, self.at);
                }
                _ => {
                    self.at += 1;
                    return Token::Other(from);
                }
            }
        }
        Token::Eof
    }

    fn line(&mut self) {
        while !matches!(self.peek(0), b'\n' | b'\r') && self.at < self.sql.len() {
            self.at += 1;
        }
    }

    fn comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.sql.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => (depth, self.at) = (depth + 1, self.at + 2),
                (b'*', b'/') => {
                    (depth, self.at) = (depth - 1, self.at + 2);
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// To behind the closing quote; a doubled one is part of the text.
    fn quoted(&mut self, quote: u8, escapes: bool) {
        self.at += 1;
        while self.at < self.sql.len() {
            let byte = self.peek(0);
            self.at += 1;
            if byte == b'\\' && escapes {
                self.at += 1;
            } else if byte == quote {
                if self.peek(0) != quote {
                    break;
                }
                self.at += 1;
            }
        }
        self.at = self.at.min(self.sql.len());
    }

    /// A text between dollars, if one begins here.
    fn dollar(&mut self) -> bool {
        let rest = &self.sql[self.at + 1..];
        let tag = rest.iter().take_while(|byte| is_word(**byte) && **byte != b'$').count();
        if rest.get(tag) != Some(&b'$') || rest.first().is_some_and(u8::is_ascii_digit) {
            return false;
        }
        let fence = &self.sql[self.at..self.at + tag + 2];
        let mut at = self.at + fence.len();
        while let Some(found) = self.sql.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'$')) {
            at += found;
            if self.sql[at..].starts_with(fence) {
                self.at = at + fence.len();
                return true;
            }
            at += 1;
        }
        self.at = self.sql.len();
        true
    }
}

#[derive(Default)]
struct Statement<'a> {
    words: [&'a [u8]; WORDS_KEPT],
    starts: [usize; WORDS_KEPT],
    count: usize,
    begun: Option<usize>,
    /// What the word before was.
    last: &'a [u8],
    pin: Option<Pin>,
    set_config: bool,
    says_true: bool,
    says_false: bool,
}

fn is(word: &[u8], wanted: &str) -> bool {
    word.eq_ignore_ascii_case(wanted.as_bytes())
}

fn begins(word: &[u8], wanted: &str) -> bool {
    word.get(..wanted.len()).is_some_and(|head| is(head, wanted))
}

impl<'a> Statement<'a> {
    fn other(&mut self, at: usize) {
        self.begun.get_or_insert(at);
    }

    fn word(&mut self, word: &'a [u8], at: usize) {
        self.begun.get_or_insert(at);
        if let (Some(place), Some(start)) = (self.words.get_mut(self.count), self.starts.get_mut(self.count)) {
            (*place, *start) = (word, at);
        }
        self.count += 1;
        match word.len() {
            4 if is(word, "hold") && is(self.last, "with") => self.pin = Some(Pin::HeldCursor),
            4 if is(word, "true") => self.says_true = true,
            5 if is(word, "false") => self.says_false = true,
            4 if is(word, "temp") => self.temporary(),
            9 if is(word, "temporary") => self.temporary(),
            10 if is(word, "set_config") => self.set_config = true,
            7.. if begins(word, "pg_temp") => self.pin = Some(Pin::Temporary),
            16.. if begins(word, "pg_advisory_lock") || begins(word, "pg_try_advisory_lock") => {
                self.pin = Some(Pin::AdvisoryLock);
            }
            _ => {}
        }
        self.last = word;
    }

    /// `CREATE [OR REPLACE] [LOCAL] TEMP …`, `SELECT … INTO TEMP …`.
    fn temporary(&mut self) {
        if ["create", "replace", "local", "global", "into"].iter().any(|before| is(self.last, before)) {
            self.pin = Some(Pin::Temporary);
        }
    }

    fn finish(self, sql: &'a [u8], end: usize, traits: &mut Traits) {
        let Some(begun) = self.begun else { return };
        traits.statements += 1;
        if let Some(pin) = self.pin {
            traits.pin = Some(pin);
        }
        if self.set_config && (self.says_false || !self.says_true) {
            traits.pin = Some(Pin::SetConfig);
        }
        let first = self.words[0];
        let ending = ["end", "abort", "commit", "rollback"].iter().any(|word| is(first, word));
        traits.back_to_savepoint |= ending && self.words[1..].iter().any(|word| is(word, "chain"));
        match first.len() {
            3 if is(first, "set") => self.set(sql, end, traits),
            3 if is(first, "end") => (traits.commits, traits.ends) = (true, true),
            4 if is(first, "load") => traits.pin = Some(Pin::Load),
            5 if is(first, "reset") => self.reset(sql, end, traits),
            5 if is(first, "abort") => traits.ends = true,
            6 if is(first, "commit") => (traits.commits, traits.ends) = (true, true),
            6 if is(first, "listen") => traits.pin = Some(Pin::Listen),
            7 if is(first, "prepare") && is(self.words[1], "transaction") => traits.commits = true,
            7 if is(first, "prepare") => traits.pin = Some(Pin::Prepared),
            8 if is(first, "rollback") => {
                let to = self.words[1..].iter().any(|word| is(word, "to"));
                traits.back_to_savepoint |= to;
                traits.ends = !to;
            }
            10 if is(first, "deallocate") => {
                let name = if is(self.words[1], "prepare") { self.words[2] } else { self.words[1] };
                traits.deallocate = (!is(name, "all")).then(|| String::from_utf8_lossy(name).into_owned());
            }
            _ => {}
        }
        debug_assert!(begun <= end);
    }

    fn reset(&self, sql: &'a [u8], end: usize, traits: &mut Traits) {
        let name = self.words[1];
        let whole = Name::at(sql, self.starts[1], end);
        match () {
            () if is(name, "all") => traits.changes.push(Change::ResetAll),
            () if is(name, "session") => traits.pin = Some(Pin::Setting),
            () if is(name, "time") => traits.changes.push(Change::Reset("timezone".into())),
            () if self.count == whole.words => {
                traits.pin = (!whole.plain).then_some(Pin::Setting).or(traits.pin);
                traits.changes.push(Change::Reset(whole.text));
            }
            () => traits.pin = Some(Pin::Setting),
        }
    }

    fn set(&self, sql: &'a [u8], end: usize, traits: &mut Traits) {
        let second = self.words[1];
        if is(second, "local") || is(second, "transaction") || is(second, "constraints") {
            return;
        }
        let session = is(second, "session");
        let (word, start) = if session { (self.words[2], self.starts[2]) } else { (second, self.starts[1]) };
        let named = Name::at(sql, start, end);
        let (name, plain) = match () {
            () if is(word, "time") => ("timezone".to_owned(), named.plain),
            () if is(word, "names") => ("client_encoding".to_owned(), named.plain),
            () if is(word, "schema") => ("search_path".to_owned(), named.plain),
            () => (named.text, named.plain),
        };
        let text = sql.get(self.starts[0]..end).map(|text| String::from_utf8_lossy(text).trim().to_owned());
        match text {
            Some(sql) if is_followed(&name, &sql) => {
                traits.pin = (!plain).then_some(Pin::Setting).or(traits.pin);
                traits.changes.push(Change::Set { name, sql });
            }
            _ => traits.pin = Some(Pin::Setting),
        }
    }
}

/// A setting's name as a statement has it.
struct Name {
    /// In small letters, its parts joined.
    text: String,
    /// It stands there in one piece and without quotes: whoever looks for it in the statement finds it.
    plain: bool,
    /// Of the statement, up to its end.
    words: usize,
}

impl Name {
    /// The one that begins with the word at this place: words with a dot between them, around which there may be blanks and comments.
    /// `RESET` and `SET` stand before it.
    fn at(sql: &[u8], start: usize, end: usize) -> Self {
        let quoted = start.checked_sub(1).and_then(|before| sql.get(before)) == Some(&b'"');
        let sql = sql.get(..end).unwrap_or_default();
        let mut words = Words { sql, at: start - usize::from(quoted) };
        let mut name = Name { text: String::new(), plain: !quoted, words: 1 };
        let mut behind = start;
        while let Token::Word(from, to) = words.next() {
            name.text.push_str(&String::from_utf8_lossy(&sql[from..to]).to_ascii_lowercase());
            name.words += 1;
            name.plain &= from == behind;
            match words.next() {
                Token::Other(dot) if sql[dot] == b'.' => {
                    name.text.push('.');
                    name.plain &= dot == to;
                    behind = dot + 1;
                }
                _ => break,
            }
        }
        name
    }
}

/// Settings that change who the session is, or how its texts are to be read, are not carried from server to server.
#[must_use]
pub fn is_followed(name: &str, sql: &str) -> bool {
    const NEVER: [&str; 6] =
        ["", "session_authorization", "authorization", "characteristics", "standard_conforming_strings", "xml"];
    // In these a byte of a character can look like a quote.
    const STRANGE: [&str; 8] = ["sjis", "shift", "big5", "gbk", "uhc", "gb18030", "johab", "mskanji"];
    let low = sql.to_ascii_lowercase();
    let strange = name == "client_encoding" && STRANGE.iter().any(|strange| low.contains(strange));
    !NEVER.contains(&name) && !strange && sql.len() <= 4096
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pin(sql: &str) -> Option<Pin> {
        traits(sql.as_bytes()).pin
    }

    #[test]
    fn what_ties_a_session_is_seen() {
        for (sql, why) in [
            ("create temp table a (b int)", Pin::Temporary),
            ("Create /* x */ or replace LOCAL TEMPORARY view v as select 1", Pin::Temporary),
            ("select 1 into temp t", Pin::Temporary),
            ("create global temp table a (b int)", Pin::Temporary),
            ("select * from \"pg_temp_3\".x", Pin::Temporary),
            ("declare c cursor with hold for select 1", Pin::HeldCursor),
            ("select 1; select pg_catalog.pg_advisory_lock(1)", Pin::AdvisoryLock),
            ("select pg_try_advisory_lock_shared(1)", Pin::AdvisoryLock),
            ("select set_config('a.b', $1, false)", Pin::SetConfig),
            ("select set_config('a.b', 'c', $1)", Pin::SetConfig),
            ("listen x", Pin::Listen),
            ("prepare a as select 1", Pin::Prepared),
            ("set session authorization x", Pin::Setting),
            ("set standard_conforming_strings = off", Pin::Setting),
            ("set client_encoding to 'SJIS'", Pin::Setting),
            ("set \"Weird\" to 1", Pin::Setting),
            ("set a.\"b\" to 1", Pin::Setting),
            ("set a . b to 1", Pin::Setting),
            ("set session a./* x */b to 1", Pin::Setting),
            ("reset a .b", Pin::Setting),
            ("reset a.b c", Pin::Setting),
            ("reset \"a\".b", Pin::Setting),
        ] {
            assert_eq!(pin(sql), Some(why), "{sql}");
        }
    }

    #[test]
    fn what_only_looks_so_is_not_taken_for_it() {
        for sql in [
            "select temp from weather",
            "select 'create temp table a (b int)'",
            "select $a$ ; listen x; $a$",
            "select $$ ; listen x; $$ -- listen x\n",
            "select e'\\'; listen x; --'",
            "select 'it''s; listen x'",
            "/* /* ; listen x */ ; listen y */ select 1",
            "select pg_advisory_xact_lock(1)",
            "select set_config('a.b', 'c', true)",
            "declare c cursor for select 1",
            "prepare transaction 'x'",
            "create table temp (a int)",
            "select $1, $2",
            "set local work_mem = '1MB'",
            "set transaction read only",
            "",
            ";;",
        ] {
            assert_eq!(pin(sql), None, "{sql}");
            assert!(traits(sql.as_bytes()).changes.is_empty(), "{sql}");
        }
    }

    #[test]
    fn settings_are_followed_by_their_statement() {
        let set = |name: &str, sql: &str| Change::Set { name: name.into(), sql: sql.into() };
        for (sql, change) in [
            ("SET  Work_Mem = '1MB'", set("work_mem", "SET  Work_Mem = '1MB'")),
            ("set session app.tenant to 7 ", set("app.tenant", "set session app.tenant to 7")),
            ("set time zone 'UTC';", set("timezone", "set time zone 'UTC'")),
            ("set role bob", set("role", "set role bob")),
            ("reset Work_mem", Change::Reset("work_mem".into())),
            ("RESET /* x.y */ App.Tenant -- z", Change::Reset("app.tenant".into())),
            ("set /* x.y */ app.tenant = 7", set("app.tenant", "set /* x.y */ app.tenant = 7")),
            // Such a name ties the session; what it names is known all the same.
            ("set a . b = 7", set("a.b", "set a . b = 7")),
            ("set A.\"B\" = 7", set("a.b", "set A.\"B\" = 7")),
            ("set \"a.b\" = 7", set("a.b", "set \"a.b\" = 7")),
            ("reset \"a\" . \"b\"", Change::Reset("a.b".into())),
            ("reset all", Change::ResetAll),
        ] {
            assert_eq!(traits(sql.as_bytes()).changes, [change], "{sql}");
        }
        let both = traits(b"set a.b = ';'; select 1; set statement_timeout = 5");
        assert_eq!(both.changes.len(), 2);
        assert_eq!(both.statements, 3);
        assert!(traits(b"commit").commits && traits(b" END ").ends && !traits(b"rollback to x").ends);
        assert!(traits(b"rollback to savepoint x").back_to_savepoint);
        assert_eq!(traits(b"deallocate prepare s1").deallocate.as_deref(), Some("s1"));
        assert_eq!(traits(b"deallocate all").deallocate, None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(sql in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = traits(&sql);
        }

        #[test]
        fn texts_of_quotes_and_fences_end(sql in "[$'\"a;/*e\\\\ -]{0,60}") {
            let _ = traits(sql.as_bytes());
        }

        #[test]
        fn a_literal_hides_whatever_it_holds(inner in "[a-z0-9;$\"/* -]{0,40}") {
            let sql = format!("select '{inner}; listen x; set a.b = 1'");
            prop_assert_eq!(traits(sql.as_bytes()), Traits { statements: 1, ..Traits::default() });
        }
    }
}
