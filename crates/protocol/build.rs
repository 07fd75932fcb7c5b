//! Compiles the schema with no `protoc` needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/tidings.proto");
    let schema = protox::compile(["proto/tidings.proto"], ["proto"])?;
    prost_build::Config::new()
        .bytes(["."])
        // Written by hand in src/lib.rs: it holds a token.
        .skip_debug(["tidings.v1.Auth"])
        .compile_fds(schema)?;
    Ok(())
}
