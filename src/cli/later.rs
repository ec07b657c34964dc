//! Arguments of a command that are spelled out only when that command is given.
//!
//! Owns the delay; what the arguments are, each command says. Telling all of them apart takes as much
//! memory as all else at the start, and `serve` would keep it.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, builder::Resettable};

/// The arguments `T`, unknown to the parser until their command is met.
#[derive(Debug)]
pub(super) struct Later<T>(pub(super) T);

impl<T: Args> Args for Later<T> {
    fn augment_args(command: Command) -> Command {
        command.defer(spell_out::<T>)
    }

    fn augment_args_for_update(command: Command) -> Command {
        command.defer(spell_out_for_update::<T>)
    }
}

impl<T: FromArgMatches> FromArgMatches for Later<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}

fn spell_out<T: Args>(command: Command) -> Command {
    keeping_about(command, T::augment_args)
}

fn spell_out_for_update<T: Args>(command: Command) -> Command {
    keeping_about(command, T::augment_args_for_update)
}

/// What the list of commands says of this one stands; the arguments' own comment is for the reader
/// of the code.
fn keeping_about(command: Command, spell_out: fn(Command) -> Command) -> Command {
    let about = command.get_about().cloned();
    let long_about = command.get_long_about().cloned();
    spell_out(command)
        .about(Resettable::from(about))
        .long_about(Resettable::from(long_about))
}
