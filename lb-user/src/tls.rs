//! TLS, ended by homing: certificates from files, and the one that fits a client's wish. Who loads them anew, and when, is
//! `control`'s business; the handshake is `proxy`'s.

mod certificate;
mod server;
#[cfg(test)]
pub mod testing;

pub use certificate::{Certificate, Stamp, Validity};
pub use server::{Tickets, server};
