// SPDX-License-Identifier: GPL-2.0
/*
 * rmap-oracle: is the reverse map of every anonymous page of this machine right?
 *
 * Asks the oracle that patches/test adds to a kernel, with or without the rest of
 * the series, and says what it says in sentences. The exit status is 0 if all
 * agree, 1 if something differs, 2 if there is no oracle to ask, 3 if nothing does
 * but there are migration entries: a defect if nothing migrates, and else to be
 * asked again.
 *
 * Processes that run meanwhile are looked at again, up to 20 times. What differs
 * after that is a mismatch, and the kernel's log has the pages.
 */
#include <err.h>
#include <stdio.h>

#define ORACLE "/sys/kernel/debug/anon_rmap_oracle"

int main(void)
{
	unsigned long folios, mappings, large, ksm, ksm_differ, ksm_missed, vmas;
	unsigned long retried, migration, mismatch;
	FILE *file = fopen(ORACLE, "r");

	if (!file)
		err(2, "%s: needs CONFIG_ANON_RMAP_ORACLE (samples/README.rst), root, debugfs",
		    ORACLE);
	if (fscanf(file,
		   "folios %lu mappings %lu large %lu ksm %lu ksm_differ %lu ksm_missed %lu vmas %lu retried %lu migration %lu mismatch %lu",
		   &folios, &mappings, &large, &ksm, &ksm_differ, &ksm_missed, &vmas,
		   &retried, &migration, &mismatch) != 10)
		errx(2, "%s: an answer that this program does not know", ORACLE);
	fclose(file);

	printf("%lu anonymous folios (%lu large, %lu of KSM) are mapped %lu times.\n",
	       folios, large, ksm, mappings);
	printf("Walks offered %lu VMAs for them: %lu.%02lu for each mapping.\n", vmas,
	       mappings ? vmas / mappings : 0, mappings ? vmas * 100 / mappings % 100 : 0);
	if (retried)
		printf("%lu looks had to be repeated, since processes ran meanwhile.\n",
		       retried);
	if (ksm_differ)
		printf("%lu KSM folios are not found once each, as on any kernel.\n",
		       ksm_differ);
	if (ksm_missed)
		printf("%lu of these have a mapping that is not found at all.\n", ksm_missed);
	if (mismatch) {
		printf("MISMATCH: walk, page tables and mapcount differ for %lu folios: dmesg.\n",
		       mismatch);
		puts("The reverse map is WRONG.");
		return 1;
	}
	puts("Each is found where the page tables have it, as often as its mapcount says.");
	if (migration) {
		printf("%lu migration entries: ask again when nothing migrates. Entries that stay\n"
		       "are those of mappings that a walk has MISSED.\n", migration);
		return 3;
	}
	puts("The reverse map is right.");
	return 0;
}
