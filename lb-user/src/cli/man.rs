//! Manual pages, made from the definition of the commands: one to stdout, or all into a folder.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// Prints the page of the program itself.
pub(super) fn print(command: Command, out: &mut dyn Write) -> io::Result<()> {
    page(built(command), out)
}

/// Writes a page for the program and for each of its commands, `homing-keys-rotate.1` and so on; makes the folder.
pub(super) fn write_all(command: Command, dir: &Path) -> io::Result<usize> {
    fs::create_dir_all(dir)?;
    write_below(built(command), dir)
}

fn write_below(command: Command, dir: &Path) -> io::Result<usize> {
    let mut count = 1;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        count += write_below(below.clone(), dir)?;
    }
    let mut text = Vec::new();
    let name = Man::new(command.clone()).get_filename();
    page(command, &mut text)?;
    fs::write(dir.join(name), text)?;
    Ok(count)
}

/// With the names that pages have, and without the command `help`, which has none.
fn built(command: Command) -> Command {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    command
}

fn page(command: Command, out: &mut dyn Write) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let has_commands = command.get_subcommands().any(|below| !below.is_hide_set());
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // Without a date: the page is as old as the program. clap_mangen would leave the place of an empty one out.
    writeln!(out, ".TH {name} 1 \"\" \"homing {}\" homing", env!("CARGO_PKG_VERSION"))?;
    let man = Man::new(command);
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if has_commands {
        man.render_subcommands_section(out)?;
    }
    let mut roff = Roff::new();
    for paragraph in after.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        section(paragraph, &mut roff);
    }
    roff.control("SH", ["SEE ALSO"]);
    if name != "homing" {
        roff.text([bold("homing"), roman("(1), ")]);
    }
    roff.text([bold("homing.toml"), roman("(5)")]);
    roff.to_writer(out)
}

/// A paragraph of the help, `Title: text` or `Title:` and lines that stay as they are, as a section of the page.
fn section(paragraph: &str, roff: &mut Roff) {
    let (title, text) = paragraph.split_once(':').unwrap_or(("Notes", paragraph));
    roff.control("SH", [title.to_uppercase().as_str()]);
    if !text.starts_with('\n') {
        roff.text([roman(text.trim())]);
        return;
    }
    roff.control("nf", []);
    for line in text.lines().skip(1) {
        roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    roff.control("fi", []);
}
