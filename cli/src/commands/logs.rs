//! `logs`: the guest's console. A guest is not trusted with the terminal of who looks at it.

use crate::args::Logs;
use crate::escape::Escaper;
use crate::lookup;
use crate::output::write_stdout;
use anyhow::Result;
use pinfold_sdk::Client;
use std::io::IsTerminal;

pub async fn run(client: &Client, options: &Logs) -> Result<i32> {
    let id = lookup::id(client, &options.sandbox).await?;
    let mut logs = client.logs(id, 0, options.follow).await?;
    let raw = options.raw || !std::io::stdout().is_terminal();
    let mut escaper = Escaper::default();
    let mut expected = 0;
    while let Some(chunk) = logs.next().await? {
        if chunk.offset > expected {
            eprintln!("pinfold: {} bytes of the console are no longer kept", chunk.offset - expected);
        }
        expected = chunk.offset + chunk.data.len() as u64;
        if raw {
            write_stdout(&chunk.data)?;
        } else {
            write_stdout(escaper.push(&chunk.data).as_bytes())?;
        }
    }
    if !raw {
        write_stdout(escaper.finish().as_bytes())?;
    }
    Ok(0)
}
