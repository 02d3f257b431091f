//! `ucp-sync`: rounds of anti-entropy between brokers, and facts on a stick.

fn main() -> std::process::ExitCode {
    ucp::cli::sync::main()
}
