//! The parent process of one CLI process, see the crate `pilotlight_shim`.

fn main() {
    pilotlight_shim::main()
}
