/* SPDX-License-Identifier: Apache-2.0 */
#include "text.h"

#include <string.h>

#include "base/arith.h"
#include "test.h"

TEST(clean)
{
    char buf[TEXT_MAX];

    check_str(text_clean(buf, ""), "");
    check_str(text_clean(buf, "kvcached_vLLM-1.2 ~"), "kvcached_vLLM-1.2 ~");
    check_str(text_clean(buf, "a\033[2Jb\r\n\t\a\177"), "a\\x1b[2Jb\\x0d\\x0a\\x09\\x07\\x7f");
    check_str(text_clean(buf, "\302\233"), "\\xc2\\x9b"); /* the one-character form of "escape [" */
    check_str(text_clean(buf, "\xff"), "\\xff");
}

TEST(clean_is_cut)
{
    char text[2 * TEXT_MAX], buf[TEXT_MAX];

    memset(text, '\033', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    text_clean(buf, text);
    check_eq(strlen(buf), (TEXT_MAX - 1) / 4 * 4);
    check_str(buf + strlen(buf) - 4, "\\x1b");
    memset(text, 'a', sizeof(text) - 1);
    check(strlen(text_clean(buf, text)) >= TEXT_MAX - 5);
}

TEST(instances)
{
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT;
    char buf[TEXT_MAX];

    info.domain = (char *)"uid-0:/a\nb";
    info.instance = (char *)"vllm";
    check_str(text_instance(buf, &info, false), "vllm");
    check_str(text_instance(buf, &info, true), "uid-0:/a\\x0ab/vllm");
}

TEST(percents)
{
    char buf[TEXT_PERCENT_MAX];

    check_str(text_percent(buf, 0, 8 * GIB), "0.0 %");
    check_str(text_percent(buf, GIB, 8 * GIB), "12.5 %");
    check_str(text_percent(buf, 8 * GIB, 8 * GIB), "100.0 %");
    check_str(text_percent(buf, 9 * GIB, 8 * GIB), "112.5 %");
    check_str(text_percent(buf, 0, 0), "0.0 %");
    check_str(text_percent(buf, 1, 0), "-");
    check(strlen(text_percent(buf, UINT64_MAX, 1)) < TEXT_PERCENT_MAX);
}

TEST(peers)
{
    Kvcached__PeerInfo peer = KVCACHED__PEER_INFO__INIT;
    char buf[TEXT_MAX];

    peer.pid = 12;
    check_str(text_peer(buf, &peer), "pid 12");
    peer.program = (char *)"python\033]0;root\a";
    check_str(text_peer(buf, &peer), "pid 12 (python\\x1b]0;root\\x07)");
}

TEST(words_of_the_protocol)
{
    check_str(text_role(KVCACHED__ROLE__ROLE_ENGINE), "engine");
    check_str(text_role(KVCACHED__ROLE__ROLE_WORKER), "worker");
    check_str(text_role(KVCACHED__ROLE__ROLE_SCHEDULER), "scheduler");
    check_str(text_role(KVCACHED__ROLE__ROLE_UNSPECIFIED), "unknown");
    check_str(text_role((Kvcached__Role)77), "unknown");
    check_str(text_role((Kvcached__Role)-1), "unknown");
    check_str(text_limit_source(KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ADMIN), "admin");
    check_str(text_limit_source(KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_CONFIG), "config");
    check_str(text_limit_source(KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ENGINE), "engine");
    check_str(text_limit_source(KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_BUDGET), "budget");
    check_str(text_limit_source((Kvcached__LimitSource)-1), "unknown");
}
