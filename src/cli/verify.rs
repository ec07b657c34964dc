//! `verify`: does this signature match, and if not, why?

use std::{
    fs,
    io::{self, Read as _},
    path::PathBuf,
    time::SystemTime,
};

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Failure, Outcome, hidden, print};
use crate::signature::{
    Scheme, VerifyError,
    explain::{Case, explain},
};

/// What is looked at.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The environment variable that holds the secret
    #[arg(long, value_name = "VARIABLE", required_unless_present = "secret_file")]
    secret_env: Option<String>,
    /// The file that holds the secret; one trailing newline is cut
    #[arg(long, value_name = "FILE", conflicts_with = "secret_env")]
    secret_file: Option<PathBuf>,
    /// How the sender signs
    #[arg(long, default_value = "tinytalk")]
    scheme: String,
    /// A header as received; may be repeated
    #[arg(
        long = "header",
        short = 'H',
        value_name = "NAME: VALUE",
        required = true
    )]
    headers: Vec<String>,
    /// The method, for schemes that sign it
    #[arg(long, default_value = "POST")]
    method: String,
    /// Path and query, for schemes that sign them
    #[arg(long, default_value = "/")]
    url: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The body as received, byte for byte; - is stdin
    #[arg(default_value = "-")]
    file: PathBuf,
}

pub(super) fn run(args: VerifyArgs) -> Outcome {
    let usage = |line: String| Failure::Usage(vec![line]);
    let scheme = Scheme::preset(&args.scheme).ok_or_else(|| {
        usage(format!(
            "--scheme: expected one of {}",
            Scheme::PRESETS.join(", ")
        ))
    })?;
    let secret = secret(&args)?;
    let headers = headers(&args.headers)?;
    let mut body = Vec::new();
    if args.file.as_os_str() == "-" {
        io::stdin().read_to_end(&mut body)?;
    } else {
        body = fs::read(&args.file)
            .map_err(|error| usage(format!("{}: {}", args.file.display(), error.kind())))?;
    }
    let case = Case {
        scheme: &scheme,
        headers: &headers,
        method: &args.method,
        url: &args.url,
        body: &body,
        now: SystemTime::now(),
    };
    let explanation = explain(&case, &secret);
    let reason = explanation.refused.map(|refused| match refused {
        VerifyError::Expired => "expired",
        VerifyError::Malformed => "malformed",
        VerifyError::Mismatch => "mismatch",
        VerifyError::Missing => "missing",
    });
    if args.json {
        let line = json!({
            "matches": reason.is_none(), "reason": reason, "findings": explanation.findings
        });
        print(&format!("{line}\n"))?;
    } else {
        let verdict = reason.map_or_else(
            || "The signature matches.\n".to_owned(),
            |reason| format!("The signature does not match ({reason}).\n"),
        );
        print(
            &explanation
                .findings
                .iter()
                .fold(verdict, |text, f| text + "  " + f + "\n"),
        )?;
    }
    match reason {
        None => Ok(()),
        Some(reason) => Err(Failure::Failed(format!("signature {reason}"))),
    }
}

fn secret(args: &VerifyArgs) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let usage = |line: &str| Failure::Usage(vec![line.to_owned()]);
    let secret = if let Some(path) = &args.secret_file {
        let bytes =
            fs::read(path).map_err(|error| usage(&format!("--secret-file: {}", error.kind())))?;
        let bytes = Zeroizing::new(bytes);
        let cut = bytes
            .strip_suffix(b"\n")
            .map(|b| b.strip_suffix(b"\r").unwrap_or(b));
        Zeroizing::new(cut.unwrap_or(&bytes).to_vec())
    } else {
        let name = args.secret_env.as_deref().unwrap_or_default();
        let text = hidden(name);
        let text =
            text.ok_or_else(|| usage("--secret-env: the variable named there is not set"))?;
        Zeroizing::new(text.as_bytes().to_vec())
    };
    if secret.is_empty() {
        Err(usage("the secret is empty: anyone could sign"))
    } else {
        Ok(secret)
    }
}

fn headers(lines: &[String]) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let parsed = line.split_once(':').and_then(|(name, value)| {
            let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        });
        let (name, value) = parsed
            .ok_or_else(|| Failure::Usage(vec!["--header: expected 'Name: value'".to_owned()]))?;
        headers.append(name, value);
    }
    Ok(headers)
}
