//! demo
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {}
pub(super) fn run(_: DemoArgs) -> super::Outcome {
    Ok(())
}
