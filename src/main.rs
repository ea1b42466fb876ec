//! The program: which of its lives this is, and the exit status.

use std::os::unix::ffi::OsStrExt;

fn main() {
    let name = std::env::args_os().next().unwrap_or_default();
    let status = match name.as_bytes() {
        name if name.starts_with(stockade::keeper::KEEPER_NAME.as_bytes()) => stockade::keeper::main(),
        name if name == stockade::keeper::build::BUILDER_NAME.as_bytes() => stockade::keeper::build::main(),
        name if name == stockade::inside::INSIDE_NAME.as_bytes() => stockade::inside::main(),
        _ => stockade::cli::main(),
    };
    std::process::exit(status);
}
