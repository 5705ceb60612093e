//! The dashboard's three files, as the browser gets them. It loads nothing from anywhere else.

use http::header::{CONTENT_SECURITY_POLICY, HeaderValue};

use super::answer::{Answer, with_type};

/// Nothing but these files runs, styles or is asked, nothing is sent elsewhere, and no page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone, Copy)]
pub(super) struct Part {
    content_type: &'static str,
    text: &'static str,
}

pub(super) fn part(path: &str) -> Option<Part> {
    let (content_type, text) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("page/dashboard.html")),
        "/dashboard.css" => ("text/css; charset=utf-8", include_str!("page/dashboard.css")),
        "/dashboard.js" => ("text/javascript; charset=utf-8", include_str!("page/dashboard.js")),
        _ => return None,
    };
    Some(Part { content_type, text })
}

pub(super) fn answer(part: Part) -> Answer {
    let mut answer = with_type(part.content_type, part.text);
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_puts_nothing_in_as_markup_and_loads_nothing_from_elsewhere() {
        for path in ["/", "/dashboard.css", "/dashboard.js"] {
            let text = part(path).expect("there").text.replace("http://www.w3.org/2000/svg", "");
            for word in
                ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "http://", "https://", "style="]
            {
                assert!(!text.contains(word), "{word} in {path}");
            }
        }
    }
}
