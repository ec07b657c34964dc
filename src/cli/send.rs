//! send
#[derive(Debug, clap::Args)]
pub(super) struct SendArgs {}
pub(super) fn run(_: SendArgs) -> super::Outcome {
    Ok(())
}
