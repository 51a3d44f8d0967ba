//! The image builder's half: the Yocto layer, the service units, the scripts. Each check is also
//! made on copies of the tree that are broken on purpose, and must find what is broken.

mod broken;
mod checks;
mod compliance;
mod kernel;
mod scripts;
