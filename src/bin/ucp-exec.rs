//! `ucp-exec`: joins a broker, runs its jobs, and keeps results until a broker has them.

fn main() -> std::process::ExitCode {
    ucp::cli::exec::main()
}
