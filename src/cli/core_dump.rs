//! What a crash leaves behind, and who may look into a running process.
//!
//! Every command that reads a secret begins here. A core dump would hold the key bytes of every
//! endpoint, and be kept and sent on by whatever collects it; so would what another process of the
//! same user reads out of ours. Root still may, with a debugger or `gcore`: an operator who has to
//! look into a process that hangs is not locked out, and there is no switch to forget.

use std::io::{self, Write as _};

use rustix::process::{Resource, Rlimit, setrlimit};

/// Leaves no core dump, and lets no other process of this user look into our memory.
///
/// What the system refuses is said on stderr: it stops nobody from serving.
pub(super) fn forbid() {
    if let Err(error) = forbid_or_say_why() {
        let line = format!("hookward: warning: a crash may leave a core dump: {error}");
        // With stderr closed nobody wants it.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

fn forbid_or_say_why() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // The limit alone would not do: a core that is piped into a program is not bound by it.
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}
