use proptest::prelude::*;

use super::*;

fn masked(privacy: &Privacy, exe: &[u8], args: &[u8]) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    let found = privacy.arguments(exe, args, &mut out);
    (out, found)
}

fn redacted(exe: &str, args: &str) -> String {
    let before: Vec<u8> = args.bytes().map(|b| if b == b'|' { 0 } else { b }).collect();
    let (bytes, found) = masked(&Privacy::default(), exe.as_bytes(), &before);
    assert_eq!(found, bytes != before);
    String::from_utf8(bytes).unwrap().replace('\0', "|")
}

#[test]
fn secrets_behind_their_names_are_masked() {
    for (args, masked) in [
        ("--password=hunter2|-v|", "--password=***|-v|"),
        ("--password|hunter2|-v|", "--password|***|-v|"),
        ("--db-password|a b c|", "--db-password|***|"),
        ("DB_PASSWORD=x y|", "DB_PASSWORD=*** y|"),
        ("-H|Authorization: Bearer abc.def|u|", "-H|Authorization: ***|u|"),
        ("-H|X-Api-Key: 12345|", "-H|X-Api-Key: ***|"),
        ("-c|mysql --password=abc -u me|", "-c|mysql --password=*** -u me|"),
        ("-c|tool --token abc --next|", "-c|tool --token *** --next|"),
        ("http://h/?user=a&token=b&c=d|", "http://h/?user=a&token=***&c=d|"),
        ("Server=h;Password=p;Timeout=3|", "Server=h;Password=***;Timeout=3|"),
        ("{\"password\": \"a b\", \"x\": 1}|", "{\"password\": \"***\", \"x\": 1}|"),
        ("postgres://me:pa:ss@db:5432/x|", "postgres://me:***@db:5432/x|"),
        ("postgres://me:p/a#s?s@db:5432/x@y|", "postgres://me:***@db:5432/x@y|"),
        ("AWS_SECRET_ACCESS_KEY=abc|", "AWS_SECRET_ACCESS_KEY=***|"),
        ("--pass|x|", "--pass|***|"),
        ("--password=-x|", "--password=***|"),
        ("--password=//x, y;z|", "--password=***|"),
        ("-H|Authorization: Digest username=\"bob\", response=\"x\"|", "-H|Authorization: ***|"),
    ] {
        assert_eq!(redacted("/usr/bin/tool", args), masked);
    }
}

#[test]
fn tokens_and_keys_are_masked_by_their_form() {
    let token = format!("ghp_{}", "a1".repeat(18));
    assert_eq!(redacted("/bin/t", &format!("push|{token}|")), "push|***|");
    assert_eq!(redacted("/bin/t", &format!("x/{token}/y|")), "x/***/y|");
    assert_eq!(redacted("/bin/t", "AKIAIOSFODNN7EXAMPLE|"), "***|");
    assert_eq!(redacted("/bin/t", "-----BEGIN RSA PRIVATE KEY-----\nabc|"), "***|");
    assert_eq!(redacted("/bin/t", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.abc|"), "***|");
}

#[test]
fn options_of_known_programs_are_masked_for_them_only() {
    assert_eq!(redacted("/usr/bin/curl", "-u|me:pw|http://h|"), "-u|me:***|http://h|");
    assert_eq!(redacted("/usr/bin/curl", "-ume:pw|"), "-ume:***|");
    assert_eq!(redacted("/usr/bin/curl", "-sSu|me:pw|x|"), "-sSu|me:***|x|");
    assert_eq!(redacted("/usr/bin/curl", "-sume:pw|"), "-sume:***|");
    assert_eq!(redacted("/usr/bin/curl", "-o|out:put|-sS|a:b|"), "-o|out:put|-sS|a:b|");
    assert_eq!(redacted("/usr/bin/curl", "--user=me:pw|"), "--user=me:***|");
    assert_eq!(redacted("/usr/bin/mysqldump", "-psecret|-p|db|"), "-p***|-p|db|");
    assert_eq!(redacted("/usr/bin/sshpass", "-p|x|ssh|-p|22|"), "-p|***|ssh|-p|***|");
    assert_eq!(redacted("/usr/bin/sshpass", "-p|-x|ssh|"), "-p|***|ssh|");
    assert_eq!(redacted("/usr/bin/ssh", "-p|22|me:x|"), "-p|22|me:x|");
}

#[test]
fn a_known_program_that_another_one_starts_is_known() {
    for (exe, args, masked) in [
        ("/usr/bin/sudo", "-u|me|/usr/bin/curl|-u|me:pw|", "-u|me|/usr/bin/curl|-u|me:***|"),
        ("/usr/bin/env", "A=b|mysql|-phidden|db|", "A=b|mysql|-p***|db|"),
        ("/bin/sh", "-c|curl -u me:pw http://h|", "-c|curl -u me:*** http://h|"),
        ("/bin/sh", "-c|cd x;/bin/curl -su 'me:p w'|", "-c|cd x;/bin/curl -su 'me:***'|"),
        ("/bin/sh", "-c|X=$(mysql -p'a b' -e x)|", "-c|X=$(mysql -p'***' -e x)|"),
        ("/bin/sh", "-c|mysql -p db|", "-c|mysql -p db|"),
        ("/usr/bin/ssh", "h|sh -c \"curl -u me:pw\"|", "h|sh -c \"curl -u me:***\"|"),
        ("/usr/bin/curl", "http://h/mysql|-u|me:pw|-pX|", "http://h/mysql|-u|me:***|-pX|"),
        ("/bin/sh", "-c|tar -u a:b|", "-c|tar -u a:b|"),
    ] {
        assert_eq!(redacted(exe, args), masked);
    }
}

#[test]
fn other_words_are_kept() {
    for args in [
        "--password-file|/etc/x|",
        "--tokenizer=fast|",
        "--max-tokens|5|",
        "--password|--next|",
        "--password|",
        "a|b||c|",
        "http://host:80/path@x|",
        "http://[2001:db8::1]/path@x|",
        "http://host/a:b@x|",
        "secret|store|",
        "sk-short|",
        "token://x|",
        "",
    ] {
        assert_eq!(redacted("/usr/bin/tool", args), args);
    }
}

#[test]
fn names_can_be_added_and_all_can_be_switched_off() {
    let more = Privacy::new(true, &["PIN-code".into()], &[]);
    let (args, found) = masked(&more, b"/bin/modem", b"--sim-pincode\x001234\0");
    assert_eq!((args.as_slice(), found), (&b"--sim-pincode\0***\0"[..], true));
    let off = Privacy::new(false, &[], &[]);
    let (args, found) = masked(&off, b"/bin/modem", b"--password=x\0");
    assert_eq!((args.as_slice(), found), (&b"--password=x\0"[..], false));
    let long = [b"-", "pin".repeat(50).as_bytes(), b"code\0x\0"].concat();
    assert!(masked(&more, b"/bin/modem", &long).1);
}

#[test]
fn of_an_environment_only_allowed_variables_are_kept() {
    let names = ["LANG".to_string(), "DB_PASSWORD".to_string(), "CUT".to_string()];
    let privacy = Privacy::new(true, &[], &names);
    let env = b"PATH=/bin\0LANG=C\0LANGUAGE=de\0DB_PASSWORD=x y;z\0CUT=of";
    let mut kept = Vec::new();
    let is_redacted = privacy.environment(env, &mut kept);
    assert_eq!((kept.as_slice(), is_redacted), (&b"LANG=C\0DB_PASSWORD=***\0"[..], true));
    kept.clear();
    assert!(!Privacy::default().environment(env, &mut kept) && kept.is_empty());
}

proptest! {
    #[test]
    fn the_number_of_arguments_stays(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("--password".to_string()),
                Just("token=".to_string()),
                Just("://a:".to_string()),
                Just("@".to_string()),
                Just("\0".to_string()),
                "[ -~]{0,12}",
            ],
            0..20,
        ),
    ) {
        let args = parts.concat().into_bytes();
        let nuls = |bytes: &[u8]| bytes.iter().filter(|b| **b == 0).count();
        let (told, _) = masked(&Privacy::default(), b"/usr/bin/curl", &args);
        prop_assert_eq!(nuls(&args), nuls(&told));
    }

    #[test]
    fn the_value_of_a_secret_option_never_stays(
        others in proptest::collection::vec("[ -~]{0,12}", 0..4),
        option in prop_oneof![Just("--password"), Just("-db_passwd"), Just("--api-key")],
        tail in "[ -~]{0,10}",
    ) {
        let secret = format!("{option}=S3CR{tail}");
        let args = others.iter().chain([&secret]).fold(Vec::new(), |mut all, arg| {
            all.extend_from_slice(arg.as_bytes());
            all.push(0);
            all
        });
        let (args, _) = masked(&Privacy::default(), b"/usr/bin/tool", &args);
        prop_assert!(!args.windows(4).any(|bytes| bytes == b"S3CR"));
    }

    #[test]
    fn the_value_of_a_secret_in_json_never_stays_and_what_follows_does(
        inside in "[ -~]{0,10}",
        depth in 0..3_usize,
    ) {
        let secret = format!("S3CR{inside}S3CR");
        let object = serde_json::json!({ "a_password": secret, "id": "kept" });
        // As one program's argument, and within the quotes of the command lines of others.
        let mut text = object.to_string();
        for _ in 0..depth {
            text = format!("send {} now", serde_json::Value::from(text));
        }
        let (told, _) = masked(&Privacy::default(), b"/bin/sh", format!("-c\0{text}\0").as_bytes());
        let told = String::from_utf8(told).unwrap();
        prop_assert!(!told.contains("S3CR") && told.contains("kept"), "{told}");
    }

    #[test]
    fn the_value_of_a_variable_never_stays_however_a_shell_reads_it(
        pieces in proptest::collection::vec(("[a-zA-Z0-9 ;&,=:]{0,6}", 0..4_u8), 1..5),
    ) {
        let mut word = String::new();
        for (piece, quoting) in &pieces {
            let piece = format!("{piece}S3CR");
            match quoting {
                0 => word += &format!("'{piece}'"),
                1 => word += &format!("\"{piece}\""),
                _ => piece.chars().for_each(|c| {
                    word.extend((!c.is_ascii_alphanumeric()).then_some('\\'));
                    word.push(c);
                }),
            }
        }
        let text = format!("-c\0DB_PASSWORD={word} tool --kept\0");
        let (told, _) = masked(&Privacy::default(), b"/bin/sh", text.as_bytes());
        let told = String::from_utf8(told).unwrap();
        prop_assert!(!told.contains("S3CR") && told.ends_with(" tool --kept\0"), "{told}");
    }
}
