# XEN_ELFNOTE_PHYS32_ENTRY: tells a loader that the image can be entered in 32 bits, as PVH guests are.
.section .note.pvh, "a", @note
    .balign 4
    .long 4                     # length of the name
    .long 4                     # length of the descriptor
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start_pvh
