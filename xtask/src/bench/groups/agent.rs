//! From exec to the guest agent's hello, by the wall's clock.

use super::Sandbox;
use crate::bench::lab::{Lab, at};
use crate::bench::table::{Goal, Row, median};
use anyhow::Result;

pub fn run(lab: &mut Lab<'_>, runs: u32) -> Result<Vec<Row>> {
    let (own, stock) = (Sandbox::with("pinfold/vmlinux"), Sandbox::with("stock/vmlinuz"));
    let (mut own_ms, mut stock_ms) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        own_ms.push(at(&lab.real("our kernel", &own.arguments())?, "to_mark_us")? / 1000.0);
        stock_ms.push(at(&lab.real("stock kernel", &stock.arguments())?, "to_mark_us")? / 1000.0);
    }
    let what = "exec to guest agent ready, our kernel";
    Ok(vec![
        Row::ratio(what, Goal::RatioAtMost(0.45), median(&own_ms), "ms", median(&stock_ms))
            .beside("our VMM with the stock kernel"),
    ])
}
