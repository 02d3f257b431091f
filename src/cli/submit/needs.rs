//! `--needs`: what the executor must have, from words to numbers.
//!
//! Reads no file and speaks to nobody. Shape: `WHAT=VALUE,…`; the flag may be repeated.

use crate::cli::report::Failure;
use crate::proto::capability::Needs;

/// Reads all that was given with `--needs`.
///
/// # Errors
/// Wrong usage, with the word that is none.
pub fn needs(texts: &[String]) -> Result<Needs, Failure> {
    let mut needs = Needs::default();
    for text in texts.iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty()) {
        need(&mut needs, text).map_err(|why| {
            Failure::usage(format_args!("--needs {text}: {why}"))
                .hint("as in: --needs cores=2,memory=1G,label=gpu")
        })?;
    }
    Ok(needs)
}

fn need(needs: &mut Needs, text: &str) -> Result<(), String> {
    let (what, value) = text.split_once('=').ok_or("WHAT=VALUE is expected")?;
    let size = || crate::cli::args::size(value).map(Some);
    let percent = || value.parse::<u8>().map(Some).map_err(|_| "percent, 0 to 100".to_owned());
    match what {
        "cores" => needs.cores = value.parse().map_err(|_| "a whole number is expected")?,
        "memory" => needs.memory = size()?,
        "disk" => needs.disk = size()?,
        "battery" => needs.battery = percent()?,
        "cpu_free" => needs.cpu_free = percent()?,
        "label" => needs.labels.push(value.to_owned()),
        _ => {
            return Err("known are cores, memory, disk, battery, cpu_free and label".to_owned());
        }
    }
    Ok(())
}
