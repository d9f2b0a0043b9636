"""The ways in which training asks: pools of wordings for each task, English and Chinese, in our own words.

LLMGA draws one at random for each item (LLMGA.md §3.1, §7.2), so that a model answers to any wording. What serving
itself says (`services.mllm.instructions`) is one of the ways in each pool.
"""

from dataclasses import dataclass

from services.mllm.instructions import SOURCE_CAPTION, Writing, question


@dataclass(frozen=True)
class Pools:
    """Wordings of one language.

    `draw_before` and `draw_behind` ask for a picture of the words that follow or go before; `enrich` asks for a longer
    text about them, and fits on both sides. `joined` puts two parts together.
    """

    caption: tuple[str, ...]
    similar: tuple[str, ...]
    inpaint: tuple[str, ...]
    outpaint: tuple[str, ...]
    draw_before: tuple[str, ...]
    draw_behind: tuple[str, ...]
    enrich: tuple[str, ...]
    joined: str


ENGLISH = Pools(
    caption=(
        question(Writing.DESCRIBE, "", has_picture=True),
        "What can be seen here?",
        "Tell me what is in this picture.",
        "Put this image into words.",
        "Give a thorough account of the scene.",
        "Write down everything that you see in the photo.",
        "How would you describe this to someone who cannot see it?",
        "Explain the content of this image in detail.",
        "Name what is shown and where it stands.",
        "Please write a full caption for this picture.",
        "What does the image depict?",
        "Look closely and report what is there.",
    ),
    similar=(
        question(Writing.SIMILAR, ""),
        SOURCE_CAPTION,
        f"{SOURCE_CAPTION}.",
        "Make a picture that resembles this one.",
        "Draw this again in your own way.",
        "I would like one more picture like this.",
        "Create an image with the same content and look.",
        "Can you paint something close to this photo?",
        "Reproduce this picture.",
        "Produce a variation of the image.",
        "Please design a picture that matches this one.",
    ),
    inpaint=(
        question(Writing.INPAINT, ""),
        "Fill the black holes in this photo.",
        "Parts of the image are gone; paint what belongs there.",
        "Complete this picture.",
        "Restore what the black areas hide.",
        "Please repair the damaged image.",
        "Draw the whole picture, with its blank spots filled.",
        "Something was cut out here. Put it back.",
        "Imagine what is behind the black marks and show the full image.",
        "Can you finish the picture where it is missing?",
    ),
    outpaint=(
        question(Writing.OUTPAINT, ""),
        "Extend this picture past its edges.",
        "Show more of the scene than the frame does.",
        "Continue the image into the black border.",
        "Paint what lies outside the visible part.",
        "Widen the view of this photo.",
        "The picture is cropped; draw the rest around it.",
        "Please grow the scene in every black direction.",
        "What surrounds this? Draw the larger picture.",
        "Enlarge the canvas and fill it to match.",
    ),
    draw_before=(
        "draw",
        "paint",
        "generate",
        "create",
        "show me",
        "make a picture of",
        "please draw",
        "I want to see",
        "design an image that shows",
        "can you paint",
        "please produce an illustration of",
        "render",
        "a picture of",
    ),
    draw_behind=(
        "Draw it.",
        "Show that to me as a picture.",
        "What would that look like?",
        "Please paint this.",
        "Make an image out of it.",
        "Can you create a picture of that?",
        "Generate this.",
        "I want it as an image.",
        "Turn that into an illustration.",
        "Design a picture for it.",
        "Visualize this for me.",
        "Render it, please.",
    ),
    enrich=(
        "Describe this more fully.",
        "Expand the sentence with details.",
        "Write out this idea at length.",
        "Tell it in more words.",
        "Make the description richer.",
        "Elaborate on this text.",
        "Add detail to the following idea.",
        "Turn this into a long description.",
        "Please spell out the whole scene.",
    ),
    joined="{} {}",
)
CHINESE = Pools(
    caption=(
        "请详细描述这张图片的内容。",
        "图里有什么？",
        "说说你看到了什么。",
        "请用文字描述这幅画面。",
        "这张图展示了什么？",
        "请写一段完整的图片说明。",
        "仔细看图，告诉我有哪些东西。",
        "把画面的内容讲清楚。",
        "请说明图中的物体和它们的位置。",
    ),
    similar=(
        "请再生成一张与这张图相像的图片。",
        "画一张类似的图。",
        "照这张图再画一幅。",
        "我还想要一张这样的图片。",
        "请创作一张内容相同的图片。",
        "重新画出这幅画面。",
        "做一张风格一样的图。",
        "请仿照它生成图片。",
    ),
    inpaint=(
        "这张图的黑色部分缺失了。请补全缺失的部分，生成完整的图片。",
        "把图里的黑洞补上。",
        "请修复这张残缺的图片。",
        "补全这幅画。",
        "想象黑色区域里有什么，画出整张图。",
        "请把被遮住的地方画出来。",
        "图片坏了一块，请补好。",
    ),
    outpaint=(
        "画面在黑色边框处继续延伸。请把画面扩展开来，生成更大的完整图片。",
        "把这张图向外扩展。",
        "请画出边框之外的景象。",
        "让画面变得更宽。",
        "请补画黑色边缘，展示更大的场景。",
        "图被裁剪过，请画出周围的部分。",
    ),
    draw_before=(
        "请生成一张图片：",
        "画",
        "请画",
        "生成",
        "给我看",
        "帮我画一张图：",
        "我想要一幅画：",
        "请设计一张图，内容是",
        "创作一幅画：",
    ),
    draw_behind=(
        "。请画出来。",
        "，画成一张图。",
        "。这会是什么样子？请画给我看。",
        "，请生成图片。",
        "。把它做成一幅画。",
        "，帮我画一下。",
    ),
    enrich=(
        "请把这句话写得更详细：",
        "请扩写：",
        "用一段话详细描写这个画面：",
        "请丰富下面的描述：",
        "展开写一写：",
        "请补充细节：",
    ),
    joined="{}{}",
)
