//! The packages: what dpkg and systemd make of them, from the installation to the purge.

mod container;
mod life;
mod tree;
