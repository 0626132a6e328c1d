//! The one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    namegate::cli::main()
}
