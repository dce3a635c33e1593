//! x
#[derive(clap::Args)]
pub struct BenchArgs {}
pub fn run(_a: BenchArgs) -> Result<(), crate::failure::Failure> {
    Ok(())
}
