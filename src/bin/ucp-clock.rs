//! `ucp-clock`: a filter over vector clocks and histories.

fn main() -> std::process::ExitCode {
    ucp::cli::clock::main()
}
