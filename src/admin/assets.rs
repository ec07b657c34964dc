//! The dashboard's files, in the program itself: it needs nothing from anywhere.

use http::HeaderValue;

/// A file.
pub(super) struct Asset {
    pub(super) kind: HeaderValue,
    pub(super) bytes: &'static [u8],
}

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const CSS: HeaderValue = HeaderValue::from_static("text/css; charset=utf-8");
const SCRIPT: HeaderValue = HeaderValue::from_static("text/javascript; charset=utf-8");
const SVG: HeaderValue = HeaderValue::from_static("image/svg+xml");

/// The file at a path.
pub(super) fn find(path: &str) -> Option<Asset> {
    let (kind, bytes): (_, &[u8]) = match path {
        "/" => (HTML, include_bytes!("dashboard/index.html")),
        "/assets/style.css" => (CSS, include_bytes!("dashboard/style.css")),
        "/assets/icon.svg" => (SVG, include_bytes!("dashboard/icon.svg")),
        "/assets/api.js" => (SCRIPT, include_bytes!("dashboard/api.js")),
        "/assets/charts.js" => (SCRIPT, include_bytes!("dashboard/charts.js")),
        "/assets/dom.js" => (SCRIPT, include_bytes!("dashboard/dom.js")),
        "/assets/endpoints.js" => (SCRIPT, include_bytes!("dashboard/endpoints.js")),
        "/assets/health.js" => (SCRIPT, include_bytes!("dashboard/health.js")),
        "/assets/live.js" => (SCRIPT, include_bytes!("dashboard/live.js")),
        "/assets/main.js" => (SCRIPT, include_bytes!("dashboard/main.js")),
        "/assets/page.js" => (SCRIPT, include_bytes!("dashboard/page.js")),
        "/assets/queue.js" => (SCRIPT, include_bytes!("dashboard/queue.js")),
        _ => return None,
    };
    Some(Asset { kind, bytes })
}
