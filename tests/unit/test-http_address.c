/* SPDX-License-Identifier: Apache-2.0 */
#include "http_address.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"

static void expect(const char *text, bool is_local)
{
    char buf[HTTP_ADDRESS_TEXT_MAX];
    struct http_address address;

    check_eq(http_address_parse(text, &address), 0);
    check_str(http_address_format(buf, &address), text);
    check_eq(http_address_is_local(&address), is_local);
}

TEST(there_and_back)
{
    expect("127.0.0.1:9470", true);
    expect("127.255.0.9:1", true);
    expect("0.0.0.0:65535", false);
    expect("192.0.2.7:0", false);
    expect("[::1]:9470", true);
    expect("[::]:9470", false);
    expect("[2001:db8::1]:80", false);
}

TEST(what_is_none)
{
    static const char *const texts[] = {
        "",
        ":",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0:1",
        "::1:9470",
        "[::1]",
        "[::1]:",
        "[127.0.0.1]:1",
        "localhost:9470",
        "on",
        "off:9470",
        "127.0.0.1:1x",
        " 127.0.0.1:1",
        "[::1]:9470 ",
        "[]:1",
        "[::1:9470",
        "[:1",
        "127.1:80",
        "0127.0.0.1:80x",
        "[::1]]:80",
        "[fe80:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000]:80",
    };
    struct http_address address = {.off = true};

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        if (http_address_parse(texts[i], &address) != -EINVAL)
            test_fail(__FILE__, __LINE__, "\"%s\" is an address", texts[i]);
    check(address.off);
}

TEST(off)
{
    char buf[HTTP_ADDRESS_TEXT_MAX];
    struct http_address address = {0};

    check_eq(http_address_parse("off", &address), 0);
    check(address.off);
    check_str(http_address_format(buf, &address), "off");
}

TEST(a_port_for_each_gpu)
{
    char buf[HTTP_ADDRESS_TEXT_MAX];
    struct http_address address = http_address_default(0);

    check_str(http_address_format(buf, &address), "127.0.0.1:9470");
    address = http_address_default(7);
    check_str(http_address_format(buf, &address), "127.0.0.1:9477");
    address = http_address_default(65535 - 9470);
    check_str(http_address_format(buf, &address), "127.0.0.1:65535");
    check(http_address_default(65536 - 9470).off);
    check(http_address_default(UINT32_MAX).off);
}
