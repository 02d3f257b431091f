//! `ucp-broker`: takes jobs, deploys them on executors, and keeps what came of them.

fn main() -> std::process::ExitCode {
    ucp::cli::broker::main()
}
