//! Certificate authorities and what they issue.

use crate::{
    Error, Result,
    cert::{CertInfo, certificates_der, parse_certificate, private_key_der},
    key, pem,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, string::Ia5String,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;

/// Life of CAs and of our own server certificates: 10 years of 365 days.
pub const DEFAULT_CA_EXPIRY: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Life of a workload certificate when `dpCert.rotation.expiration` is unset.
pub const DEFAULT_WORKLOAD_EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// Bits of a builtin CA's RSA key when `RSAbits` is unset.
pub const DEFAULT_RSA_BITS: u32 = 2048;
/// Common name of the CA of Envoy admin listeners.
pub const ADMIN_CA_COMMON_NAME: &str = "Envoy Admin CA";
/// How far before `now` mesh certificates start, against skewed clocks.
const MESH_SKEW: Duration = Duration::from_secs(10);
/// The same for our own server certificates.
const SERVER_SKEW: Duration = Duration::from_secs(5 * 60);

/// A certificate (or chain) and its private key.
#[derive(Clone, PartialEq, Eq)]
pub struct PemPair {
    /// `CERTIFICATE` blocks, leaf first.
    pub cert_pem: String,
    /// One private key block.
    pub key_pem: String,
}

impl std::fmt::Debug for PemPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PemPair").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl PemPair {
    /// Certificate followed by key: the data of GlobalSecrets `envoy-admin-ca` and `inter-cp-ca`.
    pub fn bundle(&self) -> String {
        format!("{}{}", self.cert_pem, self.key_pem)
    }
    /// Takes a [`bundle`](Self::bundle) apart.
    ///
    /// # Errors
    /// A certificate or a key is missing or damaged.
    pub fn from_bundle(data: &str) -> Result<PemPair> {
        let cert_pem = certificates_der(data)?.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
        Ok(PemPair { cert_pem, key_pem: key::private_pem(&private_key_der(data)?)? })
    }
}

/// A workload's identity.
#[derive(Clone)]
pub struct WorkloadCertificate {
    /// The leaf certificate, PEM (Kuma sends no intermediates).
    pub chain_pem: String,
    /// PKCS#8 PEM of its P-256 key.
    pub key_pem: String,
    /// Start of validity: `now` − 10 s.
    pub not_before: SystemTime,
    /// End of validity: `now` + expiry.
    pub not_after: SystemTime,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
}

impl std::fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkloadCertificate").field("serial", &self.serial).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A CA parsed once and used for many certificates.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    info: CertInfo,
}

pub(crate) fn crypto(e: rcgen::Error) -> Error {
    Error::Crypto(e.to_string())
}

pub(crate) fn seconds(at: SystemTime) -> Result<OffsetDateTime> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| Error::Time)?;
    let since = i64::try_from(since.as_secs()).map_err(|_| Error::Time)?;
    OffsetDateTime::from_unix_timestamp(since).map_err(|_| Error::Time)
}

/// Truncated to what a certificate holds: whole seconds.
fn instant(at: OffsetDateTime) -> SystemTime {
    let since = u64::try_from(at.unix_timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Random in [2^126, 2^127): DER integers are signed, so with the first octet in 0x40..=0x7f all 16 octets are written as they are.
pub(crate) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

pub(crate) fn validity(params: &mut CertificateParams, from: SystemTime, skew: Duration, to: SystemTime) -> Result<()> {
    params.not_before = seconds(from.checked_sub(skew).ok_or(Error::Time)?)?;
    params.not_after = seconds(to)?;
    Ok(())
}

fn ascii(text: &str) -> Result<Ia5String> {
    Ia5String::try_from(text).map_err(|_| Error::Name(text.to_owned()))
}

pub(crate) fn empty_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

/// Our own server certificate: self-signed P-256, empty subject, CA:TRUE (clients get it as their CA bundle), SANs as given, valid from five
/// minutes before `now` for ten years. (Kuma makes an RSA key; the shape is otherwise its own.)
///
/// # Errors
/// A host name that is not ASCII.
pub fn self_signed_server(hostnames: &[String], ips: &[IpAddr], now: SystemTime) -> Result<PemPair> {
    let mut params = empty_params();
    let start = now.checked_sub(SERVER_SKEW).ok_or(Error::Time)?;
    validity(&mut params, start, Duration::ZERO, start.checked_add(DEFAULT_CA_EXPIRY).ok_or(Error::Time)?)?;
    params.serial_number = Some(random_serial());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in hostnames {
        params.subject_alt_names.push(SanType::DnsName(ascii(name)?));
    }
    params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
    let key = key::p256()?;
    let cert = params.self_signed(&key).map_err(crypto)?;
    Ok(PemPair { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

fn root(common_name: &str, uri: Option<String>, rsa_bits: u32, expiry: Duration, now: SystemTime) -> Result<PemPair> {
    let mut params = empty_params();
    validity(&mut params, now, MESH_SKEW, now.checked_add(expiry).ok_or(Error::Time)?)?;
    // Serial 0 as Kuma's: roots are told apart by key, never by serial.
    params.serial_number = Some(SerialNumber::from_slice(&[0]));
    params.distinguished_name.push(DnType::OrganizationName, "Kuma");
    params.distinguished_name.push(DnType::OrganizationalUnitName, "Mesh");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if let Some(uri) = uri {
        params.subject_alt_names.push(SanType::URI(ascii(&uri)?));
    }
    let (key, key_pem) = key::rsa(rsa_bits)?;
    let cert = params.self_signed(&key).map_err(crypto)?;
    Ok(PemPair { cert_pem: cert.pem(), key_pem })
}

/// The CA of a `builtin` backend: RSA, serial 0, `O=Kuma, OU=Mesh, CN=<mesh>`, URI SAN `spiffe://<mesh>`, valid from `now` − 10 s to
/// `now` + `expiry`. `rsa_bits` 0 means 2048; sizes that the library lacks are rounded up (2048, 3072, 4096, 8192). Slow.
///
/// # Errors
/// More than 8192 bits; a life beyond the year 9999.
pub fn builtin_ca(mesh: &str, rsa_bits: u32, expiry: Duration, now: SystemTime) -> Result<PemPair> {
    root(mesh, Some(format!("spiffe://{mesh}")), rsa_bits, expiry, now)
}

/// The CA of the Envoy admin listeners: RSA 2048, serial 0, `O=Kuma, OU=Mesh, CN=Envoy Admin CA`, ten years. Slow.
///
/// # Errors
/// The library cannot make a key.
pub fn envoy_admin_ca(now: SystemTime) -> Result<PemPair> {
    root(ADMIN_CA_COMMON_NAME, None, DEFAULT_RSA_BITS, DEFAULT_CA_EXPIRY, now)
}

impl Ca {
    /// Parses certificate chain and key. Certificates are signed in the name of the chain's first certificate.
    ///
    /// # Errors
    /// Either text is damaged, or the key is not the first certificate's.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Ca> {
        let key = key::signing_key(key_pem)?;
        let chain = certificates_der(cert_pem)?;
        let first = chain.first().ok_or(Error::NoPem("certificate"))?;
        let info = parse_certificate(first)?;
        if key.subject_public_key_info() != info.public_key {
            return Err(Error::Mismatch);
        }
        let issuer = Issuer::from_ca_cert_der(first, key).map_err(|e| Error::Certificate(e.to_string()))?;
        Ok(Ca { issuer, info })
    }

    /// From a [`PemPair`].
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem).
    pub fn from_pair(pair: &PemPair) -> Result<Ca> {
        Ca::from_pem(&pair.cert_pem, &pair.key_pem)
    }

    /// What the CA's own certificate says.
    pub fn info(&self) -> &CertInfo {
        &self.info
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    fn issue(&self, mut params: CertificateParams) -> Result<(String, String, String)> {
        let serial = random_serial();
        let hex = serial.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        params.serial_number = Some(serial);
        params.use_authority_key_identifier_extension = true;
        let key = key::p256()?;
        let cert = params.signed_by(&key, &self.issuer).map_err(crypto)?;
        Ok((cert.pem(), key.serialize_pem(), hex))
    }

    /// The identity of a data plane proxy: a P-256 leaf with empty subject and URI SANs `spiffe://<mesh>/<service>` for each service
    /// (sorted), then `kuma://<tag>/<value>` for every tag and value (sorted). `services` are the values of `kuma.io/service`, or the label
    /// `kuma.io/workload` for a proxy without one; `tags` is the proxy's tag set. Key usage keyEncipherment, keyAgreement,
    /// digitalSignature; extended key usage serverAuth and clientAuth. A life beyond the year 9999 ends with the CA's.
    ///
    /// # Errors
    /// A tag that is not ASCII; a clock before 1970.
    pub fn workload_certificate(
        &self,
        mesh: &str,
        services: &BTreeSet<String>,
        tags: &BTreeMap<String, BTreeSet<String>>,
        expiry: Duration,
        now: SystemTime,
    ) -> Result<WorkloadCertificate> {
        let mut params = empty_params();
        // A life that no certificate can hold must not leave a whole mesh without identities: nothing outlives its CA usefully.
        let end = now.checked_add(expiry).filter(|end| seconds(*end).is_ok()).unwrap_or(self.info.not_after);
        validity(&mut params, now, MESH_SKEW, end)?;
        let (not_before, not_after) = (instant(params.not_before), instant(params.not_after));
        for service in services {
            params.subject_alt_names.push(SanType::URI(ascii(&format!("spiffe://{mesh}/{service}"))?));
        }
        for (tag, values) in tags {
            for value in values {
                params.subject_alt_names.push(SanType::URI(ascii(&format!("kuma://{tag}/{value}"))?));
            }
        }
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement, KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (chain_pem, key_pem, serial) = self.issue(params)?;
        Ok(WorkloadCertificate { chain_pem, key_pem, not_before, not_after, serial })
    }

    /// Server certificate of a proxy's admin listener: P-256, SANs = `addresses` (IPs as IP, others as DNS names), serverAuth, ten years.
    /// Call it on the Envoy admin CA.
    ///
    /// # Errors
    /// An address that is not ASCII.
    pub fn admin_server_certificate(&self, addresses: &[String], now: SystemTime) -> Result<PemPair> {
        self.server(addresses, ExtendedKeyUsagePurpose::ServerAuth, now)
    }

    /// Client certificate with which the control plane calls admin listeners: DNS SAN `kuma-cp`, clientAuth, ten years.
    ///
    /// # Errors
    /// The library cannot sign.
    pub fn admin_client_certificate(&self, now: SystemTime) -> Result<PemPair> {
        self.server(&["kuma-cp".to_owned()], ExtendedKeyUsagePurpose::ClientAuth, now)
    }

    fn server(&self, names: &[String], usage: ExtendedKeyUsagePurpose, now: SystemTime) -> Result<PemPair> {
        let mut params = empty_params();
        validity(&mut params, now, MESH_SKEW, now.checked_add(DEFAULT_CA_EXPIRY).ok_or(Error::Time)?)?;
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(ascii(name)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let (cert_pem, key_pem, _) = self.issue(params)?;
        Ok(PemPair { cert_pem, key_pem })
    }
}
