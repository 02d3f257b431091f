//! One page of the manual in man(7): from the definition of a command line and the words beside it.
//!
//! Flags come from clap_mangen; order and headings are ours: one page for each program, a
//! subsection for each subcommand, what all commands have in common once.

use clap::{Arg, Command};
use clap_mangen::Man;
use ucp::cli::manual::{Manual, Row};

/// The date of the pages: that of the last change worth telling, never the day of the build.
const DATE: &str = "2026-11-23";
/// Headings of flags that stand once in a page, after the subcommands.
const SHARED: [&str; 2] = ["Broker", "Common"];

/// The page of a program.
pub fn render(definition: Command, manual: &Manual) -> String {
    let name = definition.get_name().to_owned();
    let plain = definition.disable_help_subcommand(true).disable_version_flag(true);
    let plain = plain.disable_help_flag(true);
    let man = |command: &Command| Man::new(command.clone()).title(name.to_uppercase());
    let head = man(&plain).date(DATE).source(concat!("ucp ", env!("CARGO_PKG_VERSION")));
    let head = head.manual("UCP");
    let mut page = String::from(".\\\" Made by scripts/man: change src/cli, not this page.\n");
    page += &part(|out| head.render_title(out));
    page += &name_section(&plain, &name);
    page += &synopsis(&plain, &name);
    page += &part(|out| head.render_description_section(out));
    for note in manual.notes {
        page += &format!(".PP\n{}\n", text(note));
    }
    page += &options(&plain);
    page += &subcommands(&plain, &name);
    page += &shared(&plain);
    page += &rows("EXIT STATUS", manual.exit_status.iter());
    page += &environment(&name, manual);
    if !manual.files.is_empty() {
        page += &rows("FILES", manual.files.iter());
    }
    page += ".SH EXAMPLES\n";
    for (what, commands) in manual.examples {
        page += &format!(".PP\n{}:\n.PP\n.RS 4\n.EX\n{}\n.EE\n.RE\n", text(what), code(commands));
    }
    page += &see_also(manual);
    let lines = page.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.map(|line| format!("{line}\n")).collect()
}

/// What clap_mangen writes, without the definition for apostrophes that begins each part.
fn part(render: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut out = vec![];
    render(&mut out).expect("memory can be written");
    let text = String::from_utf8(out).expect("pages are UTF-8");
    let preamble = |line: &&str| !line.starts_with(".ie ") && !line.starts_with(".el ");
    let lines = text.lines().filter(preamble).map(|line| format!("{line}\n"));
    lines.collect::<String>().replace("\\*(Aq", "\\(aq")
}

fn name_section(command: &Command, name: &str) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let about = about.trim_end_matches('.');
    let mut letters = about.chars();
    let first = letters.next().map(|first| first.to_lowercase().to_string());
    let about = first.unwrap_or_default() + letters.as_str();
    format!(".SH NAME\n{} \\- {}\n", text(name), text(&about))
}

/// The forms of the command, one a line: its own words where it has some, else one for each
/// subcommand.
fn synopsis(command: &Command, name: &str) -> String {
    if command.get_overridden_usage().is_some() {
        let man = Man::new(command.clone());
        return part(|out| man.render_synopsis_section(out));
    }
    let mut forms = vec![];
    if !command.is_subcommand_required_set() {
        forms.push(String::from("[\\fIOPTIONS\\fR]"));
    }
    for sub in command.get_subcommands() {
        let mut form = format!("\\fB{}\\fR [\\fIOPTIONS\\fR]", text(sub.get_name()));
        for arg in sub.get_positionals() {
            form += &format!(" {}", positional(arg));
        }
        forms.push(form);
    }
    let forms: Vec<String> =
        forms.iter().map(|form| format!("\\fB{}\\fR {form}\n", text(name))).collect();
    format!(".SH SYNOPSIS\n{}", forms.join(".br\n"))
}

fn positional(arg: &Arg) -> String {
    let name = arg.get_value_names().map_or(arg.get_id().as_str(), |names| names[0].as_str());
    let many = arg.get_num_args().is_some_and(|count| count.max_values() > 1);
    let name = format!("\\fI{}\\fR{}", text(name), if many { "..." } else { "" });
    if arg.is_required_set() { name } else { format!("[{name}]") }
}

/// The flags that `wanted` picks, without any heading.
fn items(command: &Command, wanted: impl Fn(&Arg) -> bool) -> String {
    let picked = command.clone().mut_args(|arg| {
        let hidden = !wanted(&arg);
        arg.hide(hidden).help_heading(None::<&'static str>)
    });
    let picked = picked.disable_help_flag(true).disable_version_flag(true);
    let man = Man::new(picked);
    let made = part(|out| man.render_options_section(out));
    made.strip_prefix(".SH OPTIONS\n").unwrap_or_default().to_owned()
}

/// The program's own flags, by heading.
fn options(command: &Command) -> String {
    let mut headings: Vec<Option<&str>> = vec![None];
    for heading in command.get_arguments().map(Arg::get_help_heading) {
        let shared = heading.is_some_and(|heading| SHARED.contains(&heading));
        if !shared && !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let mut made = String::new();
    for heading in headings {
        let found = items(command, |arg| arg.get_help_heading() == heading);
        if let (Some(heading), false) = (heading, found.is_empty()) {
            made += &format!(".SS {}\n", quoted(heading));
        }
        made += &found;
    }
    if made.is_empty() { made } else { format!(".SH OPTIONS\n{made}") }
}

fn subcommands(command: &Command, name: &str) -> String {
    let mut made = String::from(".SH COMMANDS\n");
    for sub in command.get_subcommands() {
        made += &format!(".SS {}\n", quoted(&format!("{name} {}", sub.get_name())));
        let about = sub.get_long_about().or_else(|| sub.get_about()).map(ToString::to_string);
        for paragraph in about.unwrap_or_default().split("\n\n") {
            made += &format!("{}\n.PP\n", text(paragraph));
        }
        let of_root = |arg: &Arg| command.get_arguments().any(|own| own.get_id() == arg.get_id());
        if sub.get_name() == "serve" && sub.get_arguments().all(of_root) {
            made += "It takes the options above.\n";
            continue;
        }
        let shared = |arg: &Arg| arg.get_help_heading().is_some_and(|held| SHARED.contains(&held));
        let found = items(sub, |arg| !shared(arg));
        made = if found.is_empty() {
            made.trim_end_matches(".PP\n").to_owned()
        } else {
            made + &found
        };
    }
    made
}

/// The flags that several commands have, each heading once.
fn shared(command: &Command) -> String {
    let mut made = String::new();
    for heading in SHARED {
        let holders = std::iter::once(command).chain(command.get_subcommands());
        let found = holders.map(|held| items(held, |arg| arg.get_help_heading() == Some(heading)));
        let Some(found) = found.into_iter().find(|found| !found.is_empty()) else { continue };
        let title = if heading == "Broker" { "WHERE BROKERS ARE" } else { "COMMON OPTIONS" };
        made += &format!(".SH {}\n{found}", quoted(title));
        if heading == "Common" {
            made += ".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nPrint help; \\-h prints less.\n";
            made += ".TP\n\\fB\\-V\\fR, \\fB\\-\\-version\\fR\nPrint the version.\n";
        }
    }
    made
}

fn environment(name: &str, manual: &Manual) -> String {
    let prefix = name.to_uppercase().replace('-', "_");
    let twin = format!(
        "Stands for the long flag \\-\\-NAME, hyphens as underscores: {} for \\-\\-log\\-format. \
         Flags win.",
        text(&format!("{prefix}_LOG_FORMAT"))
    );
    let all = manual.environment.iter().copied().flatten();
    let head =
        format!(".SH ENVIRONMENT\n.TP\n\\fB{}\\fR\n{twin}\n", text(&format!("{prefix}_NAME")));
    head + rows("", all).trim_start_matches(".SH \n")
}

fn rows<'a>(title: &str, rows: impl Iterator<Item = &'a Row>) -> String {
    let row = |(term, said): &Row| format!(".TP\n\\fB{}\\fR\n{}\n", text(term), text(said));
    let title = if title.contains(' ') { quoted(title) } else { title.to_owned() };
    format!(".SH {title}\n{}", rows.map(row).collect::<String>())
}

fn see_also(manual: &Manual) -> String {
    let last = manual.see_also.len() - 1;
    let page = |(at, (name, section)): (usize, &(&str, u8))| {
        let comma = if at < last { "," } else { "" };
        format!(".BR {} ({section}){comma}\n", text(name))
    };
    let pages: String = manual.see_also.iter().enumerate().map(page).collect();
    format!(".SH {}\n{pages}", quoted("SEE ALSO"))
}

fn quoted(title: &str) -> String {
    format!("\"{}\"", text(title))
}

/// Words for the formatter: nothing of them is a request, and hyphens are what people can copy.
fn text(words: &str) -> String {
    let escaped = words.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    let escaped = escaped.replace('~', "\\(ti").replace('^', "\\(ha").replace('`', "\\(ga");
    if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
}

/// Lines that stand as they are.
fn code(lines: &str) -> String {
    lines.lines().map(text).collect::<Vec<_>>().join("\n")
}
