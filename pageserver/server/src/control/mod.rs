//! The control API: an operator attaches tenant shards here and makes timelines in them.
//!
//! Reading order: [`order`] (what every change says of itself), [`refusal`] (the engine's errors as the API's), [`board`] (what is told of this
//! process), [`service`] (the calls), [`storage`] (whether the bucket can be trusted), [`listen`] (who may call).

pub mod board;
pub mod listen;
pub mod order;
pub mod refusal;
pub mod service;
pub mod storage;
