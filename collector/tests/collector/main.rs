//! The collector as a program: real TLS, real frames, a real store.

#[cfg(test)]
mod handshake;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod printing;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod uploads;
