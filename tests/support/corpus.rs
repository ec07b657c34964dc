//! The cases of `tests/corpus`, read from their files; `tests/corpus/README.md` says how they are
//! written.

use std::path::{Path, PathBuf};

/// One case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Case {
    /// Its file and name.
    pub(crate) name: String,
    /// What it says about itself, in order: a word before a colon, and what stands behind it; or a
    /// whole line and nothing.
    pub(crate) says: Vec<(String, String)>,
    /// The bytes as they are written.
    text: String,
}

/// A piece of bytes as they are written.
enum Token<'t> {
    Byte(u8),
    Macro(&'t str),
}

impl Case {
    /// What it says under a word.
    pub(crate) fn all(&self, word: &str) -> Vec<&str> {
        let said = self.says.iter().filter(|(said, _)| said == word);
        said.map(|(_, what)| what.as_str()).collect()
    }

    /// The one thing it says under a word.
    pub(crate) fn one(&self, word: &str) -> Option<&str> {
        let all = self.all(word);
        assert!(all.len() < 2, "{}: {word} is said twice", self.name);
        all.first().copied()
    }

    /// Whether a line says just this.
    pub(crate) fn is(&self, line: &str) -> bool {
        self.one(line).is_some()
    }

    /// The bytes, with what `expand` makes of each macro that is no repeated character.
    pub(crate) fn bytes(&self, expand: impl FnMut(&str) -> Vec<u8>) -> Vec<u8> {
        unescape(&self.text, expand)
    }
}

/// Bytes as they are written; the only macro is a repeated character.
pub(crate) fn plain(text: &str) -> Vec<u8> {
    unescape(text, |name| panic!("no {{{name}}} here: {text}"))
}

fn unescape(text: &str, mut expand: impl FnMut(&str) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((token, next)) = token(rest) {
        rest = next;
        match token {
            Token::Byte(byte) => bytes.push(byte),
            Token::Macro(name) => match name.split_once('*') {
                Some((what, times)) => {
                    let one = match what.len() {
                        1 => what.as_bytes().to_vec(),
                        _ => expand(what),
                    };
                    bytes.extend(one.repeat(times.parse().unwrap()));
                }
                None => bytes.extend(expand(name)),
            },
        }
    }
    bytes
}

fn token(text: &str) -> Option<(Token<'_>, &str)> {
    let first = *text.as_bytes().first()?;
    if first == b'{' {
        let end = text.find('}').expect("a macro ends");
        return Some((Token::Macro(&text[1..end]), &text[end + 1..]));
    }
    if first != b'\\' {
        assert!(text.is_char_boundary(1), "no ASCII: {text}");
        return Some((Token::Byte(first), &text[1..]));
    }
    let (byte, length) = match text.as_bytes()[1] {
        b'r' => (b'\r', 2),
        b'n' => (b'\n', 2),
        b't' => (b'\t', 2),
        b'0' => (0, 2),
        b'\\' => (b'\\', 2),
        b'{' => (b'{', 2),
        b'x' => (u8::from_str_radix(&text[2..4], 16).unwrap(), 4),
        other => panic!("no escape: {}", char::from(other)),
    };
    Some((Token::Byte(byte), &text[length..]))
}

/// Every case of a kind (`requests` or `answers`), by file and then as they stand.
pub(crate) fn cases(kind: &str) -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir.join(kind))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut cases: Vec<Case> = Vec::new();
    for file in files {
        let family = file.file_stem().unwrap().to_str().unwrap();
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            if let Some(name) = line.strip_prefix("=== ") {
                let name = format!("{family}: {name}");
                assert!(
                    cases.iter().all(|c| c.name != name),
                    "{name} is there twice"
                );
                cases.push(Case {
                    name,
                    ..Case::default()
                });
            } else if let Some(text) = line.strip_prefix('|') {
                cases.last_mut().unwrap().text.push_str(text);
            } else if !line.is_empty() && !line.starts_with('#') {
                let (word, what) = line.split_once(':').unwrap_or((line, ""));
                let what = what.strip_prefix(' ').unwrap_or(what);
                let says = &mut cases.last_mut().unwrap().says;
                says.push((word.to_owned(), what.to_owned()));
            }
        }
    }
    cases
}
