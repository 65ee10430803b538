//! Certificates for tests.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// Who vouches for certificates.
pub struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl Issuer {
    /// One that vouches for itself.
    pub fn new(name: &str) -> Result<Issuer> {
        let mut params = named(Vec::new(), name)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Issuer(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate, in PEM form.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key of a name, in PEM form.
    pub fn issue(&self, name: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let params = named(vec![name.to_owned()], name)?;
        Ok((params.signed_by(&key, &self.0)?.pem(), key.serialize_pem()))
    }
}

/// With a subject of its own: programs tell issuers by theirs.
fn named(alternatives: Vec<String>, name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(alternatives)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
