//! `ucp-submit`: hands jobs to a broker and shows what becomes of them.

fn main() -> std::process::ExitCode {
    ucp::cli::submit::main()
}
