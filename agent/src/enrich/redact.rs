//! Command lines without their secrets. Redacting happens before anything is
//! kept or sent, so that a secret never leaves this function.

use regex::Regex;

/// What stands in place of a secret.
pub const REDACTED: &str = "[REDACTED]";

/// How much of a command line is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandLine {
    /// With the values of what looks like a secret replaced.
    #[default]
    Redacted,
    /// As it is.
    Full,
    /// Only the name of the program.
    Executable,
}

/// Turns arguments into the text that is sent.
pub struct Redactor {
    mode: CommandLine,
    max_len: usize,
    patterns: Vec<Regex>,
    /// An argument that is not UTF-8, made so; kept to reuse its memory.
    argument: String,
}

/// Anywhere in a name, in any case.
const SECRET_PARTS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "credential",
    "apikey",
    "accesskey",
    "privatekey",
    "cookie",
];

/// As a whole word of a name.
const SECRET_WORDS: &[&str] = &["key", "keys", "pass", "pwd", "auth", "bearer"];

/// Names that hold such a word and are no secret: the shell's own, in capitals only.
const HARMLESS: &[&str] = &["PWD", "OLDPWD"];

/// Flags whose value is `user:password`.
const USER_FLAGS: &[&str] = &["-u", "--user", "--proxy-user", "-U"];

/// URL schemes in which a user without a password is a name and no token.
const NAMED_USER_SCHEMES: &[&str] = &["ssh", "git", "sftp", "scp", "git+ssh", "rsync"];

/// What the argument before asks of this one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Anything,
    SecretValue,
    UserAndPassword,
}

impl Redactor {
    /// `max_len` is in bytes; `patterns` are the user's own, each match is replaced.
    #[must_use]
    pub fn new(mode: CommandLine, max_len: usize, patterns: Vec<Regex>) -> Self {
        Self { mode, max_len, patterns, argument: String::new() }
    }

    /// Appends the arguments (each ended by NUL, any bytes) to `out`, separated by spaces.
    pub fn write(&mut self, arguments: &[u8], out: &mut String) {
        let start = out.len();
        let trimmed = arguments.iter().rposition(|&b| b != 0).map_or(&[][..], |last| &arguments[..=last]);
        match self.mode {
            CommandLine::Executable => {
                // A process that has rewritten its title may have its arguments behind a space.
                let program = trimmed.split(|&b| b == 0 || b == b' ').next().unwrap_or_default();
                let name = program.rsplit(|&b| b == b'/').next().unwrap_or_default();
                push_lossy(out, name);
            }
            CommandLine::Redacted if may_hold_secret(trimmed) => self.write_redacted(trimmed, out),
            CommandLine::Redacted | CommandLine::Full => {
                for (i, argument) in trimmed.split(|&b| b == 0).enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    push_lossy(out, argument);
                }
            }
        }
        for pattern in &self.patterns {
            if pattern.is_match(&out[start..]) {
                let clean = pattern.replace_all(&out[start..], REDACTED).into_owned();
                out.truncate(start);
                out.push_str(&clean);
            }
        }
        if out.len() - start > self.max_len {
            let mut end = start + self.max_len;
            while !out.is_char_boundary(end) {
                end -= 1;
            }
            out.truncate(end);
        }
    }

    fn write_redacted(&mut self, arguments: &[u8], out: &mut String) {
        let mut expect = Expect::Anything;
        for (i, argument) in arguments.split(|&b| b == 0).enumerate() {
            if i > 0 {
                out.push(' ');
            }
            let text = match std::str::from_utf8(argument) {
                Ok(text) => text,
                Err(_) => {
                    self.argument.clear();
                    push_lossy(&mut self.argument, argument);
                    self.argument.as_str()
                }
            };
            expect = match expect {
                // One dash may begin a secret, two begin the next flag.
                Expect::SecretValue if !text.starts_with("--") => {
                    out.push_str(REDACTED);
                    Expect::Anything
                }
                Expect::UserAndPassword if text.contains(':') && !text.contains("://") => {
                    let user = text.split(':').next().unwrap_or_default();
                    out.push_str(user);
                    out.push(':');
                    out.push_str(REDACTED);
                    Expect::Anything
                }
                _ => write_argument(text, out),
            };
        }
    }
}

/// Appends one argument, which may itself be a script, a header or a URL.
fn write_argument(text: &str, out: &mut String) -> Expect {
    if USER_FLAGS.contains(&text) {
        out.push_str(text);
        return Expect::UserAndPassword;
    }
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if !is_name(first) {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        if let Some(len) = joined_user_and_password(rest) {
            out.push_str(rest.split(':').next().unwrap_or_default());
            out.push(':');
            out.push_str(REDACTED);
            rest = &rest[len..];
            continue;
        }
        let begins = rest.len() == text.len();
        let ascii = rest.bytes().position(|b| !IS_NAME[b as usize]).unwrap_or(rest.len());
        // Only past ASCII is a character more than a byte.
        let end = ascii + rest[ascii..].find(|c| !is_name(c)).unwrap_or(rest.len() - ascii);
        let (name, after) = rest.split_at(end);
        out.push_str(name);
        rest = after;
        if let Some(authority) = after.strip_prefix("://") {
            out.push_str("://");
            rest = write_authority(name, authority, out);
        } else if let Some((before, value)) = user_and_password(name, after) {
            out.push_str(before);
            out.push_str(value.split(':').next().unwrap_or_default());
            out.push(':');
            out.push_str(REDACTED);
            rest = &after[before.len() + value.len()..];
        } else if is_secret(name) {
            if after.is_empty() && name.starts_with('-') {
                return Expect::SecretValue;
            }
            // `--flag=value` and `NAME=value` as an argument of their own: a shell has
            // already taken the quotes away, so spaces belong to the value.
            let secret = match after.strip_prefix('=') {
                Some(value) if begins => Some(("=", value)),
                _ => secret_after(name, after),
            };
            if let Some((before, value)) = secret
                && !value.is_empty()
            {
                out.push_str(before);
                out.push_str(REDACTED);
                rest = &after[before.len() + value.len()..];
            }
        }
    }
    Expect::Anything
}

/// What ends a word of a script.
const WORD_ENDS: &[char] = &[' ', '\t', '\n', ';', '&', '|'];

/// What stands before `user:password` and that itself, after one of
/// [`USER_FLAGS`] in a script or behind a `=`.
fn user_and_password<'a>(name: &str, after: &'a str) -> Option<(&'a str, &'a str)> {
    if !USER_FLAGS.contains(&name) {
        return None;
    }
    let (before, value) = value_in(after, after.trim_start_matches([' ', '=']), WORD_ENDS);
    is_user_and_password(value).then_some((before, value))
}

/// The length of `-uroot:password`, a flag and its value in one word.
fn joined_user_and_password(text: &str) -> Option<usize> {
    if !text.starts_with("-u") && !text.starts_with("-U") {
        return None;
    }
    let word = &text[..value_len(text, WORD_ENDS)];
    is_user_and_password(word).then_some(word.len())
}

fn is_user_and_password(text: &str) -> bool {
    text.contains(':') && !text.contains("://")
}

/// What follows a secret's name: the separator with an opening quote, and the value.
fn secret_after<'a>(name: &str, after: &'a str) -> Option<(&'a str, &'a str)> {
    // `"name": …` in JSON, which may itself be quoted: the name's own closing quote.
    let unquoted = after.trim_start_matches(['"', '\'', '\\']);
    let spaced = unquoted.trim_start_matches(' ');
    let spaces = spaced.len() < unquoted.len();
    let separator = spaced.chars().next().unwrap_or(' ');
    let value = match separator {
        // `=>` and `==` too.
        '=' | ':' => spaced[1..].trim_start_matches(['=', '>', ' ']),
        // `--flag value` inside a script, and `Bearer value`.
        _ if spaces && !spaced.starts_with('-') && (name.starts_with('-') || name.eq_ignore_ascii_case("bearer")) => {
            spaced
        }
        _ => return None,
    };
    // A header's value may have spaces; it ends with the line or the quote around it.
    let is_header = separator == ':' && !value.starts_with(['"', '\'', '\\']);
    if is_header {
        let end = value.find(['"', '\'', '\n', '\r']).unwrap_or(value.len());
        return Some((&after[..after.len() - value.len()], &value[..end]));
    }
    Some(value_in(after, value, WORD_ENDS))
}

/// The value that `rest`, the end of `text`, begins with, and what stands before
/// it in `text`, an opening quote included.
fn value_in<'a>(text: &'a str, rest: &'a str, ends: &[char]) -> (&'a str, &'a str) {
    let unescaped = rest.trim_start_matches('\\');
    let escaped = unescaped.len() < rest.len();
    let (value, len) = match unescaped.chars().next() {
        Some(quote @ ('"' | '\'')) => (&unescaped[1..], quoted_len(&unescaped[1..], quote, escaped)),
        _ => (rest, value_len(rest, ends)),
    };
    (&text[..text.len() - value.len()], &value[..len])
}

/// Bytes up to the closing quote, which is escaped as the opening one was.
fn quoted_len(text: &str, quote: char, escaped: bool) -> usize {
    let closes = |at: &usize| text[..*at].ends_with('\\') == escaped || (quote == '\'' && !escaped);
    let end = text.match_indices(quote).map(|(at, _)| at).find(closes).unwrap_or(text.len());
    text[..end].trim_end_matches('\\').len()
}

/// Bytes up to one of `ends` outside quotes. A quote without a partner is the
/// closing one around it all.
fn value_len(text: &str, ends: &[char]) -> usize {
    let mut at = 0;
    while let Some(next) = text[at..].chars().next() {
        if ends.contains(&next) {
            return at;
        }
        at += next.len_utf8();
        if matches!(next, '"' | '\'') {
            match text[at..].find(next) {
                Some(partner) => at += partner + 1,
                None => return at - 1,
            }
        }
    }
    text.len()
}

/// Appends `user:password@host` up to the path without the password; returns what follows.
fn write_authority<'a>(scheme: &str, text: &'a str, out: &mut String) -> &'a str {
    let end = text.find(['/', '?', '#', ' ', '"', '\'', '\n']).unwrap_or(text.len());
    let (authority, rest) = text.split_at(end);
    // A password may itself hold an `@`: the last one counts.
    let Some((user, host)) = authority.rsplit_once('@') else {
        return write_host(text, authority, rest, out);
    };
    match user.split_once(':') {
        Some((user, _)) => {
            out.push_str(user);
            out.push(':');
            out.push_str(REDACTED);
        }
        None if NAMED_USER_SCHEMES.contains(&scheme) => out.push_str(user),
        None => out.push_str(REDACTED),
    }
    out.push('@');
    out.push_str(host);
    rest
}

/// Appends an authority without `@`. What stands where a port should and is
/// none is a password with a character that ended the authority too soon, or
/// one that was cut off with the rest of the line.
fn write_host<'a>(text: &'a str, authority: &str, rest: &'a str, out: &mut String) -> &'a str {
    let word = &text[..text.find([' ', '"', '\'', '\n']).unwrap_or(text.len())];
    match authority.split_once(':') {
        Some((user, port)) if !authority.starts_with('[') && !port.bytes().all(|b| b.is_ascii_digit()) => {
            out.push_str(user);
            out.push(':');
            out.push_str(REDACTED);
            &text[word.rfind('@').unwrap_or(word.len())..]
        }
        _ => {
            out.push_str(authority);
            rest
        }
    }
}

fn is_name(c: char) -> bool {
    if c.is_ascii() { IS_NAME[c as usize] } else { c.is_alphanumeric() }
}

/// ASCII bytes that a name is made of.
const IS_NAME: [bool; 256] = {
    let mut is_name = [false; 256];
    let mut b = 0;
    while b < 128 {
        is_name[b] = (b as u8).is_ascii_alphanumeric() || matches!(b as u8, b'_' | b'-' | b'.');
        b += 1;
    }
    is_name
};

/// Whether a flag's, variable's or header's name says that its value is a secret.
pub fn is_secret(name: &str) -> bool {
    let name = name.trim_start_matches('-').as_bytes();
    let is_word = |text: &[u8]| SECRET_WORDS.iter().any(|secret| text.eq_ignore_ascii_case(secret.as_bytes()));
    let (part, word) = secret_words_in(name);
    let harmless = HARMLESS.iter().any(|harmless| harmless.as_bytes() == name);
    (part || (word && words(name).any(is_word))) && !harmless
}

/// Whether anything in a command line could be a secret: if not, which is
/// almost always, it need not be taken apart.
fn may_hold_secret(arguments: &[u8]) -> bool {
    arguments.windows(2).enumerate().any(|(at, pair)| match pair {
        b":/" => arguments[at..].starts_with(b"://"),
        // All of `USER_FLAGS` have this in common.
        b"-u" | b"-U" => true,
        _ => may_begin(pair) && SECRET_PARTS.iter().chain(SECRET_WORDS).any(|secret| begins(&arguments[at..], secret)),
    })
}

/// Whether a secret word may begin with these two bytes: cheap, and almost always not.
#[inline(always)]
fn may_begin(pair: &[u8]) -> bool {
    BEGINNINGS[usize::from(pair[0] & LETTER)] >> (pair[1] & LETTER) & 1 == 1
}

fn begins(text: &[u8], secret: &str) -> bool {
    text.get(..secret.len()).is_some_and(|text| text.eq_ignore_ascii_case(secret.as_bytes()))
}

/// Whether one of [`SECRET_PARTS`] and one of [`SECRET_WORDS`] is in the text.
fn secret_words_in(text: &[u8]) -> (bool, bool) {
    let (mut part, mut word) = (false, false);
    for (at, pair) in text.windows(2).enumerate() {
        if may_begin(pair) {
            part |= SECRET_PARTS.iter().any(|secret| begins(&text[at..], secret));
            word |= SECRET_WORDS.iter().any(|secret| begins(&text[at..], secret));
        }
    }
    (part, word)
}

/// The bits of an ASCII letter that do not depend on its case.
const LETTER: u8 = 0x1f;

/// For each first letter of the secret words, the second letters as bits.
const BEGINNINGS: [u32; 32] = {
    let mut bits = [0; 32];
    let lists = [SECRET_PARTS, SECRET_WORDS];
    let mut list = 0;
    while list < lists.len() {
        let mut i = 0;
        while i < lists[list].len() {
            let word = lists[list][i].as_bytes();
            bits[(word[0] & LETTER) as usize] |= 1 << (word[1] & LETTER);
            i += 1;
        }
        list += 1;
    }
    bits
};

/// `api-key`, `API_KEY` and `apiKey` are each two words.
fn words(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|b| matches!(b, b'-' | b'_' | b'.'))
        .flat_map(|part| part.chunk_by(|a, b| !(a.is_ascii_lowercase() && b.is_ascii_uppercase())))
}

/// Appends bytes as text; what is not UTF-8 becomes U+FFFD.
pub fn push_lossy(out: &mut String, bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return out.push_str(text);
    }
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redacted(arguments: &[&str]) -> String {
        let mut out = String::new();
        Redactor::new(CommandLine::Redacted, 512, Vec::new()).write(arguments.join("\0").as_bytes(), &mut out);
        out
    }

    #[test]
    fn secrets_are_replaced_wherever_they_stand() {
        for (arguments, expected) in [
            (&["mysql", "--password=s3cr3t", "db"][..], "mysql --password=[REDACTED] db"),
            (&["mysql", "--password", "s3cr3t", "db"], "mysql --password [REDACTED] db"),
            (&["env", "AWS_SECRET_ACCESS_KEY=s3cr3t", "aws"], "env AWS_SECRET_ACCESS_KEY=[REDACTED] aws"),
            (&["x", "--apiKey", "s3cr3t"], "x --apiKey [REDACTED]"),
            (
                &["sh", "-c", r#"curl -d "{\"password\":\"s3cr3t\"}""#],
                r#"sh -c curl -d "{\"password\":\"[REDACTED]\"}""#,
            ),
            (&["ruby", "-e", "password => \"s3cr3t\""], "ruby -e password => \"[REDACTED]\""),
            (&["sh", "-c", "curl -u admin:'s3cr3t' h"], "sh -c curl -u admin:[REDACTED] h"),
            (&["sh", "-c", "cd; PASSWORD=x\"y s3cr3t\" run"], "sh -c cd; PASSWORD=[REDACTED] run"),
            (&["curl", "-uuser@ex.com:s3cr3t", "h"], "curl -uuser@ex.com:[REDACTED] h"),
            (&["psql", "mysql://u:s3/cr3t@host/db"], "psql mysql://u:[REDACTED]@host/db"),
            (&["psql", "postgres://u:s3cr3t"], "psql postgres://u:[REDACTED]"),
            (&["curl", "-H", "X-Foo: Bearer s3cr3t"], "curl -H X-Foo: Bearer [REDACTED]"),
            (&["x", "--accesskey=s3cr3t"], "x --accesskey=[REDACTED]"),
            (&["x", "--pwd=s3cr3t"], "x --pwd=[REDACTED]"),
            (&["x", "Server=h;Pwd=s3cr3t;"], "x Server=h;Pwd=[REDACTED];"),
            (&["x", "--token", "-s3cr3t", "--token", "--verbose"], "x --token [REDACTED] --token --verbose"),
            (&["curl", "--user=admin:s3cr3t", "host"], "curl --user=admin:[REDACTED] host"),
            (&["curl", "-uadmin:s3cr3t", "host"], "curl -uadmin:[REDACTED] host"),
            (&["sh", "-c", "ls; curl -s -u admin:s3cr3t host"], "sh -c ls; curl -s -u admin:[REDACTED] host"),
            (&["sh", "-c", "curl --user 'a b:s3cr3t'"], "sh -c curl --user 'a b:[REDACTED]'"),
            (&["x", "--api-key=s3 cr3t"], "x --api-key=[REDACTED]"),
            (&["curl", "-H", "Authorization: Bearer s3cr3t"], "curl -H Authorization: [REDACTED]"),
            (&["curl", "-H", "X-Api-Key:s3cr3t"], "curl -H X-Api-Key:[REDACTED]"),
            (&["curl", "-u", "me:s3cr3t", "host"], "curl -u me:[REDACTED] host"),
            (&["psql", "postgres://me:s3cr3t@db:5432/x"], "psql postgres://me:[REDACTED]@db:5432/x"),
            (&["psql", "postgres://me:p@s3cr3t@db/x"], "psql postgres://me:[REDACTED]@db/x"),
            (&["git", "clone", "https://s3cr3t@host/r.git"], "git clone https://[REDACTED]@host/r.git"),
            (&["git", "clone", "ssh://git@host/r.git"], "git clone ssh://git@host/r.git"),
            (&["sh", "-c", "cd x; TOKEN=s3cr3t ./run; echo ok"], "sh -c cd x; TOKEN=[REDACTED] ./run; echo ok"),
            (&["env", "DB_PASSWORD=two words", "x"], "env DB_PASSWORD=[REDACTED] x"),
            (&["sh", "-c", "run --token s3cr3t --fast"], "sh -c run --token [REDACTED] --fast"),
            (
                &["sh", "-c", "curl -d '{\"password\": \"s3cr3t\", \"a\": 1}'"],
                "sh -c curl -d '{\"password\": \"[REDACTED]\", \"a\": 1}'",
            ),
            (&["curl", "http://h/?token=s3cr3t&x=1"], "curl http://h/?token=[REDACTED]&x=1"),
        ] {
            assert_eq!(redacted(arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for arguments in [
            &["ls", "-la", "/tmp/a b"][..],
            &["env", "PWD=/root", "PATH=/bin"],
            &["curl", "https://host:8080/path?q=1"],
            &["monkey", "--keyboard=us", "a=b"],
            &["docker", "run", "-u", "1000", "x"],
        ] {
            assert_eq!(redacted(arguments), arguments.join(" "));
        }
    }

    #[test]
    fn own_patterns_length_and_name_only() {
        let mut out = String::new();
        let pattern = Regex::new(r"cust-\d+").expect("pattern");
        Redactor::new(CommandLine::Redacted, 512, vec![pattern]).write(b"run\0cust-123\0", &mut out);
        assert_eq!(out, "run [REDACTED]");
        out.clear();
        Redactor::new(CommandLine::Executable, 512, Vec::new()).write(b"/usr/bin/psql\0-W\0x", &mut out);
        assert_eq!(out, "psql");
        out.clear();
        Redactor::new(CommandLine::Full, 4, Vec::new()).write("a\0ééé".as_bytes(), &mut out);
        assert_eq!(out, "a é");
    }

    proptest! {
        #[test]
        fn any_bytes_become_text_within_the_limit(bytes: Vec<u8>, max in 0usize..200) {
            let mut out = String::new();
            Redactor::new(CommandLine::Redacted, max, Vec::new()).write(&bytes, &mut out);
            prop_assert!(out.len() <= max);
        }

        #[test]
        fn a_password_flag_never_lets_its_value_through(value in "[!-,.-~]{8,20}", other in "[a-z]{1,9}") {
            let flag = format!("--password={value}");
            prop_assert!(!redacted(&[&other, &flag]).contains(&value));
            prop_assert!(!redacted(&[&other, "--token", &value]).contains(&value));
        }
    }
}
