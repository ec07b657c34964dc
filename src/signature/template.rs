//! The two little languages of a scheme: how a signature header is written, and what is signed.

/// What stands for something in a content template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Body,
    Id,
    Method,
    Timestamp,
    Url,
}

/// A part of a content template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Literal(String),
    Piece(Piece),
}

impl Part {
    pub(super) fn resolve<'p>(&'p self, piece: impl Fn(Piece) -> &'p str) -> &'p str {
        match self {
            Self::Literal(text) => text,
            Self::Piece(name) => piece(*name),
        }
    }
}

/// What is signed: everything before the body, the body, everything after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    before: Vec<Part>,
    after: Vec<Part>,
}

impl Content {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "{body} once, with literal text, {timestamp}, {id}, {method} and {url} around it";
        const APART: &str = "literal text between every two of {body}, {timestamp}, {id}, {method} \
                             and {url}: side by side they could be cut in several places";
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, tail)) = rest.split_once('{') {
            let (name, tail) = tail.split_once('}').ok_or(EXPECTED)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            parts.push(Part::Piece(match name {
                "body" => Piece::Body,
                "id" => Piece::Id,
                "method" => Piece::Method,
                "timestamp" => Piece::Timestamp,
                "url" => Piece::Url,
                _ => return Err(EXPECTED),
            }));
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        let is_side_by_side = |pair: &[Part]| matches!(pair, [Part::Piece(_), Part::Piece(_)]);
        if parts.windows(2).any(is_side_by_side) {
            return Err(APART);
        }
        let mut sides = parts.split(|part| *part == Part::Piece(Piece::Body));
        match (sides.next(), sides.next(), sides.next()) {
            (Some(before), Some(after), None) => Ok(Self {
                before: before.to_vec(),
                after: after.to_vec(),
            }),
            _ => Err(EXPECTED),
        }
    }

    pub(super) fn before(&self) -> &[Part] {
        &self.before
    }

    pub(super) fn after(&self) -> &[Part] {
        &self.after
    }

    pub(super) fn holds(&self, piece: Piece) -> bool {
        self.before
            .iter()
            .chain(&self.after)
            .any(|part| *part == Part::Piece(piece))
    }

    /// Whether only one cut of the signed bytes gives these values: read from its outer end
    /// towards the body, each value ends where the literal text beyond it first appears.
    pub(super) fn is_cut_one_way<'p>(&self, value_of: impl Fn(Piece) -> &'p str) -> bool {
        let before = self.before.windows(2).all(|pair| match pair {
            [Part::Piece(piece), Part::Literal(text)] => {
                let value = value_of(*piece);
                [value, text].concat().find(text.as_str()) == Some(value.len())
            }
            _ => true,
        });
        let after = self.after.windows(2).all(|pair| match pair {
            [Part::Literal(text), Part::Piece(piece)] => {
                [text, value_of(*piece)].concat().rfind(text.as_str()) == Some(0)
            }
            _ => true,
        });
        before && after
    }

    pub(super) fn is_body_alone(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }
}

/// How a signature header is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `name=value` pairs between commas, in any order; the names of timestamp and signature.
    Pairs {
        timestamp: String,
        signature: String,
    },
    /// One signature; or several between spaces, each behind its version, as Standard Webhooks
    /// writes them. What stands before and after each.
    Tokens {
        prefix: String,
        suffix: String,
        repeats: bool,
    },
}

/// What a header holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item<'v> {
    Signature(&'v str),
    Timestamp(&'v str),
}

impl Format {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "{signature} once, v1,{signature} where several may stand between \
                                spaces, or pairs such as t={timestamp},v1={signature}, in plain \
                                ASCII";
        if !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(EXPECTED);
        }
        if !text.contains("{timestamp}") {
            let (prefix, suffix) = text.split_once("{signature}").ok_or(EXPECTED)?;
            let is_plain = |t: &str| !t.contains(['{', '}', ' ']);
            return match is_plain(prefix) && is_plain(suffix) {
                true => Ok(Self::Tokens {
                    prefix: prefix.to_owned(),
                    suffix: suffix.to_owned(),
                    repeats: prefix.ends_with(','),
                }),
                false => Err(EXPECTED),
            };
        }
        let (mut timestamp, mut signature) = (None, None);
        for pair in text.split(',') {
            let (name, value) = pair.trim().split_once('=').ok_or(EXPECTED)?;
            let slot = match value {
                "{timestamp}" => &mut timestamp,
                "{signature}" => &mut signature,
                _ => return Err(EXPECTED),
            };
            if name.is_empty() || slot.replace(name.to_owned()).is_some() {
                return Err(EXPECTED);
            }
        }
        match (timestamp, signature) {
            (Some(timestamp), Some(signature)) if timestamp != signature => Ok(Self::Pairs {
                timestamp,
                signature,
            }),
            _ => Err(EXPECTED),
        }
    }

    pub(super) fn has_timestamp(&self) -> bool {
        matches!(self, Self::Pairs { .. })
    }

    /// What a header value holds, in order; `None` for a pair that is none. Pairs of other names
    /// and tokens of other forms (later versions of a scheme) are passed over.
    pub(super) fn items<'v>(
        &self,
        value: &'v str,
    ) -> impl Iterator<Item = Option<Item<'v>>> + use<'_, 'v> {
        let separator = match self {
            Self::Pairs { .. } => Some(','),
            Self::Tokens { repeats, .. } => repeats.then_some(' '),
        };
        let trimmed = value.trim_matches([' ', '\t']);
        trimmed
            .split(move |c| Some(c) == separator)
            .map(|t| t.trim_matches([' ', '\t']))
            .filter_map(move |item| match self {
                Self::Tokens { .. } if item.is_empty() => None,
                Self::Tokens { prefix, suffix, .. } => {
                    let signature = item.strip_prefix(prefix.as_str())?;
                    Some(Some(Item::Signature(
                        signature.strip_suffix(suffix.as_str())?,
                    )))
                }
                Self::Pairs {
                    timestamp,
                    signature,
                } => match item.split_once('=') {
                    None => Some(None),
                    Some((name, value)) if name == timestamp => Some(Some(Item::Timestamp(value))),
                    Some((name, value)) if name == signature => Some(Some(Item::Signature(value))),
                    Some(_) => None,
                },
            })
    }

    /// A header value with one signature.
    pub(super) fn write(&self, written: &str, at: &str) -> String {
        match self {
            Self::Pairs {
                timestamp,
                signature,
            } => {
                format!("{timestamp}={at},{signature}={written}")
            }
            Self::Tokens { prefix, suffix, .. } => format!("{prefix}{written}{suffix}"),
        }
    }
}
