//! The collector as a program: real TLS, real frames, a real store.

#[cfg(test)]
mod handshake;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod printing;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod renewal;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod siege;
#[cfg(test)]
mod storage;
#[cfg(test)]
mod uploads;
