//! As much of Markdown as this repository's pages are checked by: links, headings, tables, code in a line.

use std::collections::BTreeSet;
use std::ops::Range;

use pulldown_cmark::{Event, LinkType, Options, Parser, Tag, TagEnd};

/// `[text](target)`.
pub struct Link {
    pub line: usize,
    pub target: String,
    pub text: Range<usize>,
    pub whole: Range<usize>,
}

fn events(page: &str) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
    Parser::new_ext(page, Options::ENABLE_TABLES).into_offset_iter()
}

/// All, those to pictures too.
pub fn links(page: &str) -> Vec<Link> {
    let link = |(event, whole): (Event<'_>, Range<usize>)| {
        let (target, before) = match event {
            Event::Start(Tag::Link { link_type: LinkType::Inline, dest_url, .. }) => (dest_url, "["),
            Event::Start(Tag::Image { link_type: LinkType::Inline, dest_url, .. }) => (dest_url, "!["),
            _ => return None,
        };
        let text = whole.start + before.len()..whole.start + page[whole.clone()].rfind("](")?;
        let line = 1 + page[..whole.start].matches('\n').count();
        Some(Link { line, target: target.into_string(), text, whole })
    };
    events(page).filter_map(link).collect()
}

/// The page with those links that are not to be kept as their bare text.
pub fn without_links(page: &str, keep: impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    let mut at = 0;
    for link in links(page).iter().filter(|link| !keep(&link.target)) {
        out.push_str(&page[at..link.whole.start]);
        out.push_str(&page[link.text.clone()]);
        at = link.whole.end;
    }
    out + &page[at..]
}

/// What can stand behind `#` in a link to the page, as GitHub and mdbook make it of a heading.
pub fn anchors(page: &str) -> BTreeSet<String> {
    let (mut found, mut title) = (BTreeSet::new(), None::<String>);
    for (event, _) in events(page) {
        match event {
            Event::Start(Tag::Heading { .. }) => title = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(title) = &mut title {
                    title.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let slug = slug(&title.take().unwrap_or_default());
                let twins = (1..).map(|number| format!("{slug}-{number}"));
                let free = [slug.clone()].into_iter().chain(twins).find(|slug| !found.contains(slug));
                found.extend(free);
            }
            _ => {}
        }
    }
    found
}

fn slug(title: &str) -> String {
    let kept = title.trim().chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).flat_map(char::to_lowercase).collect()
}

/// The rows of all tables with this first line, each with its line's number.
pub fn rows<'page>(page: &'page str, head: &str) -> Vec<(usize, Vec<&'page str>)> {
    let mut found = Vec::new();
    let mut is_in = false;
    for (number, line) in (1..).zip(page.lines()) {
        if is_in && line.starts_with('|') && !line.starts_with("| ---") {
            found.push((number, cells(line)));
        }
        is_in = line == head || is_in && line.starts_with('|');
    }
    found
}

/// Between bars that are not in code.
fn cells(row: &str) -> Vec<&str> {
    let mut is_code = false;
    let is_bar = |letter: char| {
        is_code ^= letter == '`';
        letter == '|' && !is_code
    };
    let row = row.trim();
    let row = row.strip_prefix('|').unwrap_or(row);
    row.strip_suffix('|').unwrap_or(row).split(is_bar).map(str::trim).collect()
}

/// What stands in ticks.
pub fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# One & `two` (3)\n\nSee [a `b](c)` d](e.md#f) and `[no](link)`, ``a ` [neither](x)``.\n\n\
                        ```toml\n# no heading\n[no](link)\n```\n## One & two 3\n\nA list[1] of [two\nlines](g.md).\n";

    #[test]
    fn links_are_found_where_they_are_and_not_in_code() {
        let found: Vec<_> = links(PAGE).into_iter().map(|link| (link.line, link.target)).collect();
        assert_eq!(found, [(3, "e.md#f".to_owned()), (11, "g.md".to_owned())]);
        let bare = without_links(PAGE, |target| target == "g.md");
        assert!(bare.contains("See a `b](c)` d and `[no]") && bare.contains("[two\nlines](g.md)"), "{bare}");
    }

    #[test]
    fn anchors_are_those_of_github() {
        let expected = ["one--two-3", "one--two-3-1"].map(str::to_owned);
        assert_eq!(anchors(PAGE), BTreeSet::from(expected));
    }

    #[test]
    fn a_table_is_known_by_its_first_line() {
        let page =
            "| a | b |\n| --- | --- |\n| 1 | 2 |\n\n| key | b |\n| --- | --- |\n| `x`, `y` | `|` and |\n| z | |\n";
        assert_eq!(rows(page, "| key | b |"), [(7, vec!["`x`, `y`", "`|` and"]), (8, vec!["z", ""])]);
        assert_eq!(code("`x`, `y` z"), ["x", "y"]);
    }
}
