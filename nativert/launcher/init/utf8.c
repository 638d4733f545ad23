/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. */
#include "init.h"

static bool continues(const unsigned char *at)
{
	return (*at & 0xc0) == 0x80;
}

size_t utf8_sequence(const unsigned char *at, const unsigned char *end)
{
	size_t left = (size_t)(end - at);

	if (!left)
		return 0;
	if (at[0] < 0x80)
		return 1;
	if (at[0] >= 0xc2 && at[0] <= 0xdf)
		return left >= 2 && continues(at + 1) ? 2 : 0;
	if ((at[0] & 0xf0) == 0xe0) {
		if (left < 3 || !continues(at + 1) || !continues(at + 2))
			return 0;
		if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] >= 0xa0))
			return 0;
		return 3;
	}
	if (at[0] >= 0xf0 && at[0] <= 0xf4) {
		if (left < 4 || !continues(at + 1) || !continues(at + 2) || !continues(at + 3))
			return 0;
		if ((at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] >= 0x90))
			return 0;
		return 4;
	}
	return 0;
}
