//! hookward: a reverse proxy that lets only genuine webhooks through.
