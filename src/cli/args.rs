//! What the command lines of all commands share: common flags, values, and wrong usage.
//!
//! Every long flag has a twin in the environment, `UCP_SUBMIT_TIMEOUT` for `--timeout` of
//! `ucp-submit`; flags win. `--broker` has `$UCP_BROKER`, common to all (runtime/endpoint.rs).
//! Wrong usage ends with 64 and one line that names the flag, never with clap's own 2. Completions
//! are made from the same definitions as the help and the manual (cli/manual.rs).

use std::ffi::OsString;
use std::io::IsTerminal;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;

use crate::cli::exit::Exit;
use crate::cli::manual;
use crate::cli::output;
use crate::cli::report::{Failure, Reporter};
use crate::proto::units::{Size, Span};
use crate::runtime::endpoint::Address;

/// Flags that every command has.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Say more on stderr; twice for even more
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Common")]
    pub verbose: u8,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, help_heading = "Common")]
    pub quiet: bool,
    /// The form of the log on stderr
    #[arg(long, value_name = "FORM", value_enum, default_value = "text", global = true)]
    #[arg(help_heading = "Common")]
    pub log_format: LogFormat,
    /// Whether tables have colours; `NO_COLOR` counts as well
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", global = true)]
    #[arg(help_heading = "Common")]
    pub color: ColorWhen,
    /// Print completions for this shell, and do nothing else
    #[arg(long, value_name = "SHELL", value_enum, global = true, help_heading = "Common")]
    pub completions: Option<Shell>,
}

impl Common {
    /// Whether to colour what goes to `stream`.
    #[must_use]
    pub fn colour(&self, stream: &impl IsTerminal) -> bool {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match self.color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => !refused && stream.is_terminal(),
        }
    }
}

/// Flags of every command that speaks to a broker.
#[derive(Debug, Clone, clap::Args)]
pub struct BrokerArgs {
    /// A broker's address, unix:/path.sock or http://host:port; several are tried in turn
    #[arg(long, value_name = "ADDR", global = true, help_heading = "Broker")]
    pub broker: Vec<Address>,
    /// How long to wait for the first broker that answers
    #[arg(long, value_name = "D", default_value = "5s", global = true, help_heading = "Broker")]
    pub connect_timeout: Span,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON value a line.
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Reads a duration that must be longer than nothing.
///
/// # Errors
/// The text is no duration, or zero.
pub fn span(text: &str) -> Result<Span, String> {
    let span: Span =
        text.parse().map_err(|error: crate::proto::units::UnitError| error.to_string())?;
    if span.duration().is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(span) }
}

/// Reads a size.
///
/// # Errors
/// The text is no size.
pub fn size(text: &str) -> Result<Size, String> {
    text.parse().map_err(|error: crate::proto::units::UnitError| error.to_string())
}

/// Reads bytes a second, more than none.
///
/// # Errors
/// The text is no size, or zero.
pub fn rate(text: &str) -> Result<Size, String> {
    let size = size(text)?;
    if size.0 == 0 { Err("must be more than nothing".to_owned()) } else { Ok(size) }
}

/// Reads `NAME=VALUE`.
///
/// # Errors
/// There is no `=`, or nothing before it.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is no NAME=VALUE")),
    }
}

/// The whole definition of a program's command line: what is parsed, helped with, completed, and
/// described in the manual.
#[must_use]
pub fn definition<T: CommandFactory>(program: &'static str) -> clap::Command {
    with_twins(T::command(), program)
}

/// Reads the command line of `program`. Help, version and completions go to stdout and end with 0;
/// wrong usage goes to stderr and ends with 64. The matches tell what was given and what is a
/// default.
///
/// # Errors
/// The status to end with; everything was said.
pub fn parse<T: Parser>(program: &'static str) -> Result<(T, ArgMatches), Exit> {
    let mut command = definition::<T>(program);
    if let Some(shell) = completions_asked(std::env::args_os()) {
        return Err(print_completions(program, shell, &mut command));
    }
    let takes_command = command.get_arguments().any(Arg::is_last_set);
    let matches = command.try_get_matches();
    let parsed = matches.and_then(|matches| Ok((T::from_arg_matches(&matches)?, matches)));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = error.render();
            let text = if std::io::stdout().is_terminal() {
                text.ansi().to_string()
            } else {
                text.to_string()
            };
            match output::text(&text) {
                Ok(()) => Exit::Done,
                Err(error) => Reporter::new(program).failure(&error.into()),
            }
        }
        _ => Reporter::new(program).failure(&usage(program, takes_command, &error)),
    })
}

/// The shell of a `--completions SHELL` before any `--`. It is looked for before the rest is read,
/// since nothing else that a program demands matters then. What is no shell is left to clap, which
/// says so.
fn completions_asked(words: impl Iterator<Item = OsString>) -> Option<Shell> {
    let mut words = words.skip(1).take_while(|word| word != "--");
    while let Some(word) = words.next() {
        let shell = match word.to_str().and_then(|word| word.strip_prefix("--completions")) {
            Some("") => words.next()?,
            Some(rest) => rest.strip_prefix('=')?.into(),
            None => continue,
        };
        return Shell::from_str(shell.to_str()?, false).ok();
    }
    None
}

fn print_completions(program: &'static str, shell: Shell, command: &mut clap::Command) -> Exit {
    let mut script = vec![];
    clap_complete::generate(shell, command, program, &mut script);
    match output::all(&script) {
        Ok(()) => Exit::Done,
        Err(error) => Reporter::new(program).failure(&error.into()),
    }
}

/// Flags that have no twin: `--broker` has a variable that is common to all programs, and
/// `--completions` is a thing to do, not a setting.
const WITHOUT_TWIN: [&str; 2] = ["broker", "completions"];

/// Gives every long flag its twin in the environment.
#[must_use]
pub fn with_twins(command: clap::Command, program: &'static str) -> clap::Command {
    let prefix = program.to_uppercase().replace('-', "_");
    let twin = |arg: Arg| -> Arg {
        let long = arg.get_long().filter(|long| !WITHOUT_TWIN.contains(long));
        let Some(long) = long else { return arg };
        let variable = format!("{prefix}_{}", long.to_uppercase().replace('-', "_"));
        let switch = matches!(arg.get_action(), ArgAction::SetTrue);
        let arg = arg.env(variable).hide_env(true);
        if switch { arg.value_parser(clap::builder::FalseyValueParser::new()) } else { arg }
    };
    let command = command.mut_args(twin);
    let after =
        format!("{prefix}_NAME stands for a long flag --NAME in the environment; flags win.");
    let long = format!("{}{after} More: man {program}", manual::of(program).help());
    command.mut_subcommands(|sub| sub.mut_args(twin)).after_help(after).after_long_help(long)
}

/// Clap's words in our form: one line that names the flag, and at most one hint.
fn usage(program: &str, takes_command: bool, error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("unknown");
    let mut what = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    if error.kind() == ErrorKind::MissingRequiredArgument {
        let missing = lines.clone().take_while(|line| !line.starts_with("Usage:"));
        what = format!("{what} {}", missing.collect::<Vec<_>>().join(" "));
    }
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let failure = Failure::usage(what);
    if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg)
        && takes_command
        && error.kind() == ErrorKind::UnknownArgument
        && !word.starts_with('-')
    {
        let fix = format_args!("a command stands after '--', as in: {program} -- {word}");
        return failure.hint(fix);
    }
    match (tip, error.get(ContextKind::SuggestedArg)) {
        (Some(_), Some(ContextValue::String(flag))) => {
            failure.hint(format!("did you mean {flag}?"))
        }
        (Some(tip), _) => failure.hint(tip),
        (None, _) => failure.hint(format!("'{program} --help' shows the flags")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "ucp-submit", version)]
    struct Sample {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        broker: BrokerArgs,
        #[arg(long, value_parser = span)]
        timeout: Option<Span>,
    }

    fn said(arguments: &[&str]) -> Failure {
        let command = Sample::command();
        let error = command.try_get_matches_from(arguments).expect_err("wrong usage");
        usage("ucp-submit", false, &error)
    }

    #[test]
    fn wrong_usage_names_the_flag_and_the_fix_in_one_line() {
        let failure = said(&["x", "--timeout", "5"]);
        assert_eq!(failure.exit.status(), 64);
        assert!(failure.what.starts_with("wrong usage: invalid value '5' for '--timeout"));
        assert!(failure.what.contains("30s"), "{}", failure.what);
        let failure = said(&["x", "--timeot", "5s"]);
        assert!(failure.what.contains("'--timeot'"), "{}", failure.what);
        assert_eq!(failure.hint.as_deref(), Some("did you mean --timeout?"));
        let failure = said(&["x", "--broker", "nowhere"]);
        assert!(failure.what.contains("'--broker"), "{}", failure.what);
    }

    #[test]
    fn every_setting_but_broker_has_a_twin() {
        let command = with_twins(Sample::command(), "ucp-submit");
        for arg in command.get_arguments() {
            let long = arg.get_long().expect("a long flag");
            let twin = arg.get_env().map(|name| name.to_string_lossy().into_owned());
            let expected = format!("UCP_SUBMIT_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(twin, (!WITHOUT_TWIN.contains(&long)).then_some(expected));
        }
        command.debug_assert();
    }

    #[test]
    fn completions_are_asked_for_before_the_command() {
        let asked = |line: &str| completions_asked(line.split(' ').map(OsString::from));
        assert_eq!(asked("x --completions bash"), Some(Shell::Bash));
        assert_eq!(asked("x list --json --completions=zsh"), Some(Shell::Zsh));
        for other in ["x", "x -- --completions bash", "x --completions", "x --completions tcsh"] {
            assert_eq!(asked(other), None, "{other}");
        }
    }
}
