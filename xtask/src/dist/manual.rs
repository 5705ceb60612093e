//! homing.toml(5), made from the table of options in the operator's guide.

use anyhow::bail;

use crate::markdown::{rows, without_links};
use crate::tidy::documents::OPTIONS_HEAD;

/// The page.
pub fn options(guide: &str, version: &str) -> anyhow::Result<String> {
    let guide = without_links(guide, |_| false);
    let mut page = format!(
        ".TH homing.toml 5 \"\" \"homing {version}\" homing\n.SH NAME\nhoming.toml \\- configuration of homing\n\
         .SH DESCRIPTION\nOne TOML file, /etc/homing/homing.toml unless told otherwise: a table\n.B [homing]\nand a table\n\
         .B [[app]]\nfor each app, with\n.B [app.workers]\nand others below it.\n.B homing check\nnames all its errors at once, each with \
         line and column. Durations carry units: 500ms, 60s, 15m, 3h, 7d; sizes too: 64MiB, 2GB. Relative paths are relative to \
         the file. What a meaning refers to is in /usr/share/doc/homing/docs.\n.SH OPTIONS\n"
    );
    let mut count = 0;
    for (line, cells) in rows(&guide, OPTIONS_HEAD) {
        let [key, default, meaning] = cells.as_slice() else {
            bail!("the row of an option has three cells: line {line}")
        };
        let default = if *default == "–" { String::new() } else { format!("Default: {}. ", inline(default)) };
        page.push_str(&format!(".TP\n{}\n{default}{}\n", inline(key), inline(meaning)));
        count += 1;
    }
    if count == 0 {
        bail!("the operator's guide has no table of options any more");
    }
    page.push_str(
        ".SH EXAMPLES\n/etc/homing/homing.toml as it comes, and the files in /usr/share/doc/homing/examples.\n\
         .SH SEE ALSO\n\\fBhoming\\fR(1), \\fBhoming\\-check\\fR(1), \\fBhoming\\-reload\\fR(1)\n",
    );
    Ok(page)
}

/// Code in bold, and nothing that troff would take for its own.
fn inline(text: &str) -> String {
    let mut out = String::new();
    let mut is_code = false;
    for character in text.chars() {
        match character {
            '`' => {
                out.push_str(if is_code { "\\fR" } else { "\\fB" });
                is_code = !is_code;
            }
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            other => out.push(other),
        }
    }
    // A dot at the beginning of a line would be an order.
    if out.starts_with('.') { format!("\\&{out}") } else { out }
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_option_has_its_paragraph() {
        let guide = "| `homing.service` | another table |\n\n| key | default | meaning |\n| --- | --- | --- |\n\
                     | `homing.log_keep` | 5 | old files, `APP-N.log.1` the newest, see [Logs](logs.md) |\n\
                     | `app.timeouts.idle` | – | … not `a\\b` |\n\n| `other` | x | y |\n";
        let page = super::options(guide, "1.2.3").expect("a page");
        assert!(page.contains(
            ".TP\n\\fBhoming.log_keep\\fR\nDefault: 5. old files, \\fBAPP\\-N.log.1\\fR the newest, see Logs\n"
        ));
        assert!(page.contains(".TP\n\\fBapp.timeouts.idle\\fR\n… not \\fBa\\eb\\fR\n"), "{page}");
        assert!(!page.contains("fBother") && !page.contains("homing.service"), "{page}");
        assert!(super::options("nothing", "1.2.3").is_err());
    }
}
